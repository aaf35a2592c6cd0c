"""Starts, watches, restarts and drains the shards of every app of a file, and adds up their statistics.

Promises: it loads no grpcio; a shard that dies is restarted with back-off and the others are left alone; the exported
counts are those of the shards, and a scrape collects from every shard first, so the sums are exact.
"""

import itertools
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import anyio.to_thread

from onelane.config import Config
from onelane.core import addresses
from onelane.core.placement import Placement
from onelane.errors import NotThere, OnelaneError, first_of
from onelane.supervisor import descriptors
from onelane.supervisor.app import AppSupervisor
from onelane.supervisor.app_sockets import AppSockets, longest_socket_name
from onelane.supervisor.cold_start import ColdStart, StartStopped
from onelane.supervisor.collection import Collections
from onelane.supervisor.guard import guarded, guarded_for_ever
from onelane.supervisor.launcher import Launcher, RunningShard
from onelane.supervisor.leased_lives import LeasedLives
from onelane.supervisor.placing import PlacedApp, Placing
from onelane.supervisor.reload import FileDifferences, Reloader, ReloadOutcome
from onelane.supervisor.restarts import NotRestarted
from onelane.supervisor.shard_state import REPORTING, ShardEvent
from onelane.supervisor.shared_resources import SharedResources, TelemetryOptions
from onelane.supervisor.socket_folder import socket_folder
from onelane.supervisor.store_status import is_failing, store_status
from onelane.supervisor.supervised_shard import SupervisedShard
from onelane.telemetry.collector.collector import ADMIN_REFUSALS, LATE_REPORTS, Collector
from onelane.telemetry.open_files import DESCRIPTORS
from onelane.telemetry.sinks import Sink
from onelane.telemetry.sinks.prometheus import PrometheusSink
from onelane.telemetry.stats import Attributes
from onelane.v1 import control_pb2
from onelane.wire.build import running_build

if TYPE_CHECKING:
    from onelane.core.cluster_settings import ClusterSettings
    from onelane.supervisor.cluster_member import ClusterMember

log = logging.getLogger("onelane.supervisor")
COLLECT_S = 0.5
"""How long a scrape waits for shards that do not answer."""
SINK_CLOSE_S = 3.0
"""How long each sink may take at the end to export its queue."""
COMMANDS = {"drain": ShardEvent.DRAIN_ASKED, "restart": ShardEvent.RESTART_ASKED}
"""Command for one shard → the event that it is in the shard's state machine."""


class NotStarted(OnelaneError):
    """The system gives no socket: no descriptor or memory is left."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"the sockets cannot be opened: {error}; this process may open {descriptors.limit()} files")


class Supervisor:
    """All apps of one file. `run` starts them, and returns when they have ended; it is called once."""

    def __init__(
        self,
        config: Config,
        launcher: Launcher,
        *,
        app_dir: str,
        sinks: Sequence[Sink],
        telemetry: TelemetryOptions,
        read: Callable[[], Config] | None = None,
        accepts_missing_state: bool = False,
        cluster: "ClusterSettings | None" = None,
    ) -> None:
        """config: its addresses have been checked. read: reads the file again, for `reload`. accepts_missing_state: see
        `ColdStart`. cluster: that this machine is a part of.

        Raises:
            BadConfig: a file that the settings of the cluster name cannot be used.
        """
        self.config = config
        self.prometheus = PrometheusSink(os.environ)
        self.collector = Collector(config, [self.prometheus, *sinks], logs_too=telemetry.logs)
        self.collections = Collections(self._collect)
        self._sums = PrometheusSink(os.environ)
        """For scrapes of one series for each app."""
        self._exported = {False: 0, True: 0}
        """With sums or without → the number of the collection that was exported last for a scrape."""
        self.apps: list[AppSupervisor] = []
        self._cold_starts: list[ColdStart] = []
        self._accepts_missing_state = accepts_missing_state
        self._lives = LeasedLives(self.apps, lambda work, *arguments: self.tasks.start_soon(guarded, work, *arguments))
        self.cluster = None if cluster is None else self._member_of(cluster)
        self._shared = SharedResources(
            launcher=launcher,
            app_dir=app_dir,
            telemetry=telemetry,
            collector=self.collector,
            peers=dict(config.peers),
            accepting=config.accepting,
            lives=None if self.cluster is None else self._lives,
            place=None if self.cluster is None else self._place,
            identity_key=secrets.token_bytes(32),
            answer_status=lambda running, number: self.tasks.start_soon(guarded, self._answer_status, running, number),
            start_soon=lambda work, *arguments: self.tasks.start_soon(guarded, work, *arguments),
            start_shard=lambda work, *arguments: self.shard_tasks.start_soon(work, *arguments),
        )
        self._reloader = Reloader(self.apps, config, read or (lambda: config))
        self.tasks: anyio.abc.TaskGroup
        self.shard_tasks: anyio.abc.TaskGroup
        self.stop_asked = anyio.Event()
        self._is_leaving = False
        self._recycles: set[str] = set()
        """Apps all of whose shards are being restarted, or will be."""
        self._numbers = itertools.count(1)

    def _member_of(self, settings: "ClusterSettings") -> "ClusterMember":
        # Only with a cluster.
        from onelane.supervisor.cluster_member import ClusterMember
        from onelane.supervisor.machine_record import page_url

        is_tls = self.config.admin_tls is not None
        page = page_url(self.config.admin, settings.advertise, is_tls=is_tls)
        return ClusterMember(settings, self.config.apps, self._lives, page=page)

    def _place(self, app: PlacedApp) -> Placing:
        # Only with a cluster.
        from onelane.supervisor.cluster_placing import ClusterPlacing

        assert self.cluster is not None
        placing = ClusterPlacing(app, self.cluster)
        self.cluster.add(placing)
        return placing

    async def run(self, *, on_ready: Callable[[], Any] = lambda: None) -> None:
        """Start every shard, call `on_ready`, serve until `stop_asked`, drain, end.

        Raises:
            PortTaken, BadConfig, NoSocketFolder, NotStarted, StoreRefused, StoreUnavailable: before anything was
                started.
            ShardFailed: a shard could not start; the others have been ended.
        """
        self._tell_shortages()
        async with AsyncExitStack() as stack:
            folder = stack.enter_context(socket_folder(os.environ, self._longest_socket_name()))
            try:
                reserved = self._lay_out(folder, stack)
            except OSError as error:
                raise NotStarted(error) from error
            try:
                for app in self.apps:
                    await self._look_at_stored(app, stack)
            except StartStopped as stopped:
                log.info("supervisor.start_stopped %s", stopped)
                return
            try:
                await self._serve(reserved, on_ready)
            except BaseExceptionGroup as group:
                raise first_of(group) from None
            finally:
                with anyio.CancelScope(shield=True):
                    await self._flush()

    def _longest_socket_name(self) -> str:
        return max((longest_socket_name(name, app.shard_count) for name, app in self.config.apps.items()), key=len)

    def _tell_shortages(self) -> None:
        """Log what the limit of open files is too low for."""
        apps = self.config.apps
        shards = sum(app.shard_count for app in apps.values())
        open_files = descriptors.limit()
        for fault in descriptors.shortages(
            open_files, shards, {name: app.max_connections for name, app in apps.items()}
        ):
            log.warning("supervisor.few_descriptors limit=%d %s; raise it (ulimit -Hn, LimitNOFILE)", open_files, fault)

    def _lay_out(self, folder: Path, stack: AsyncExitStack) -> list[AppSockets]:
        """Choose every app's addresses and bind them, so that no other process has or takes them.

        folder: for the shards' Unix sockets. Returns the sockets whose own addresses the shards bind themselves.
        """
        reserved: list[AppSockets] = []
        epoch = int(time.time())
        for name, app in self.config.apps.items():
            app_sockets = AppSockets(name, app, folder, "" if self.cluster is None else self.cluster.name)
            stack.callback(app_sockets.close)
            for index in range(app.shard_count):
                app_sockets.claim_own(index)
            members = tuple(app_sockets.member(index) for index in range(app.shard_count))
            pins = {key: members[index].name for key, index in app.pins.items()}
            placement = Placement(epoch, members, app.points, pins)
            app_supervisor = AppSupervisor(name, app_sockets.settings, placement, self._shared)
            self.apps.append(app_supervisor)
            if app.adopts_sockets:
                app_supervisor.changes.sockets = app_sockets
                app_sockets.listen()
                for shard in app_supervisor.shards:
                    shard.listen(*app_sockets.listen_for(shard.index, shard.member))
                stack.callback(app_supervisor.close_sockets)
            else:
                reserved.append(app_sockets)
        self._shared.peers.update({app.name: addresses.reachable(app.settings.listen) for app in self.apps})
        return reserved

    async def _look_at_stored(self, app: AppSupervisor, stack: AsyncExitStack) -> None:
        """Have the placement above all that the app has stored: what a later epoch wrote would refuse its shards."""
        cold_start = ColdStart(
            app.name,
            app.settings,
            app.placement,
            accepts_missing=self._accepts_missing_state,
            is_stopping=self.stop_asked.is_set,
        )
        stack.callback(cold_start.close)
        self._cold_starts.append(cold_start)
        newest = await anyio.to_thread.run_sync(cold_start.newest_epoch)
        app.placement = replace(app.placement, epoch=max(app.placement.epoch, newest + 1))

    async def _serve(self, reserved: Sequence[AppSockets], on_ready: Callable[[], Any]) -> None:
        for app_sockets in reserved:
            app_sockets.release_own()
        async with anyio.create_task_group() as self.tasks:
            async with anyio.create_task_group() as self.shard_tasks:
                self.tasks.start_soon(self._drain_when_asked)
                if self.cluster is not None:
                    self.tasks.start_soon(self.cluster.run)
                for app in self.apps:
                    self.tasks.start_soon(guarded_for_ever, app.lane_watch.run)
                # Last to first, so that servers listen before their callers start.
                for app in reversed(self.apps):
                    for shard in app.shards:
                        self.shard_tasks.start_soon(app.supervise, shard)
                    for shard in app.shards:
                        await shard.ready.wait()
                # A first start has made the files.
                for cold_start in self._cold_starts:
                    cold_start.lock()
                for app in self.apps:
                    await app.placing.settle()
                self.tasks.start_soon(guarded_for_ever, self._feed_sinks)
                if not self.stop_asked.is_set():
                    on_ready()
            self.tasks.cancel_scope.cancel()

    async def _drain_when_asked(self) -> None:
        await self.stop_asked.wait()
        # In the order of the file, callers first: their calls under way may still call the later apps.
        for app in self.apps:
            if not await guarded(app.drain):
                app.kill()

    async def reload(self) -> ReloadOutcome:
        """Read the file again, and give the services the settings that it has for them."""
        return await self._reloader.reload()

    def calls_in_progress(self) -> int:
        """Of all shards, as of their last reports."""
        # Two lives of a shard are one source.
        sources = {app.source(shard) for app in self.apps for shard in app.all_shards}
        return int(sum(self.collector.totals.sum_of("onelane.calls.in_flight", source) for source in sources))

    async def leave(self) -> bool:
        """Take this machine out of use, before it is stopped: it counts as not ready from now on, and its keys move to
        the other machines of its cluster. It serves on. False where keys stay, as no other machine takes them."""
        self._is_leaving = True
        async with anyio.create_task_group() as tasks:
            for app in self.apps:
                tasks.start_soon(app.placing.leave)
        return not any(app.placing.owns_keys for app in self.apps)

    def file_differences(self) -> FileDifferences:
        """How the file, as it is now, differs from what runs."""
        return self._reloader.compare()

    async def recycle(self, name: str | None = None) -> None:
        """Restart every shard of every app, or of one, one after another.

        Raises:
            NotRestarted: see `Restarts.recycle`.
        """
        try:
            await self._recycle([app for app in self.apps if name in (None, app.name)])
        except NotRestarted as error:
            log.warning("supervisor.not_recycled app=%s reason=%s", name or "all", error)
            raise
        log.info("supervisor.recycled app=%s", name or "all")

    async def _recycle(self, apps: Sequence[AppSupervisor]) -> None:
        if self._recycles & {app.name for app in apps} or any(app.restarts.is_restarting for app in apps):
            raise NotRestarted("another restart is under way, and has to end first")
        self._recycles |= {app.name for app in apps}
        try:
            for app in apps:
                await app.restarts.recycle()
        finally:
            self._recycles -= {app.name for app in apps}

    def begin(self, command: str, app_name: str, index: int) -> str:
        """Begin to `drain` or `restart` one shard; why that is not possible now, or ""."""
        app = self.app(app_name)
        shard = app.shards[index]
        if fault := app.restarts.begin(COMMANDS[command], shard):
            return f"the shard cannot {command} now: {fault}"
        log.info("supervisor.%s shard=%s it was asked for on the page", command, shard.member.name)
        return ""

    def app(self, name: str) -> AppSupervisor:
        """Raises:
        NotThere: no app is called so.
        """
        for app in self.apps:
            if app.name == name:
                return app
        raise NotThere(f"no app is called {name!r}")

    async def _feed_sinks(self) -> None:
        while True:
            await anyio.sleep(1.0)
            if self.cluster is not None:
                self.collector.totals.add(self.cluster.watch.take())
            self.collector.step()

    async def _flush(self) -> None:
        self.collector.export()
        for sink in self.collector.sinks:
            await anyio.to_thread.run_sync(sink.close, SINK_CLOSE_S)

    def kill(self) -> None:
        """End every shard at once."""
        for app in self.apps:
            app.kill()

    async def _answer_status(self, running: RunningShard, number: int) -> None:
        await self.collections.wait_fresh()
        answer = control_pb2.StatusAnswer(number=number, json=json.dumps(self.status(details=True)))
        await running.control.send(control_pb2.ToShard(status=answer))

    async def _collect(self) -> None:
        """Have every shard that runs report now, and wait for the reports, at most `COLLECT_S`."""
        number = next(self._numbers)
        shards = [(app, shard) for app in self.apps for shard in app.all_shards]
        asked = [(app, shard) for app, shard in shards if shard.state in REPORTING and shard.liveness.is_responsive]
        for _, shard in asked:
            shard.collected[number] = anyio.Event()
        try:
            with anyio.move_on_after(COLLECT_S):
                for _, shard in asked:
                    await shard.send(control_pb2.ToShard(collect=number))
                for _, shard in asked:
                    await shard.collected[number].wait()
        finally:
            for app, shard in asked:
                if not shard.collected.pop(number).is_set():
                    self.collector.count(LATE_REPORTS, 1, app.source(shard))

    async def metrics(self, accept: str = "", *, sums: bool = False) -> tuple[bytes, str]:
        """Prometheus text or OpenMetrics, as an Accept header asks, exact as of now but for reports that are late; and
        its content type.

        sums: one series for each app on this machine, even if `per_shard_series` is set.
        """
        await self.collections.wait_fresh()
        if self._exported[sums] != self.collections.number:
            self._exported[sums] = self.collections.number
            self.collector.export()
            if sums:
                self._sums.points(self.collector.points(sums=True))
        return (self._sums if sums else self.prometheus).render(accept)

    def health(self) -> tuple[bool, str]:
        """Whether every configured shard is ready, and its store works; and in words how many are, and what the others
        are."""
        shards = [shard for app in self.apps for shard in app.shards]
        # Before the sockets are laid out there are none.
        total = len(shards) or sum(app.shard_count for app in self.config.apps.values())
        ready = sum(shard.is_ready for shard in shards)
        others = [f"; {shard.member.name} is {shard.label}" for shard in shards if not shard.is_ready]
        failing = self._failing_stores()
        others += [f"; the store of {name} fails" for name in failing]
        return ready == total and not failing, f"{ready}/{total} shards ready{''.join(others)}"

    def readiness(self) -> tuple[bool, str]:
        """Whether each app has a shard that serves calls and owns keys, and in words which have none. A store that
        fails is left out: what needs no store is served, and another place has no other store for the same keys. So is
        a closed fence: while etcd is down no machine would be ready."""
        if self._is_leaving:
            return False, "it has been told to leave"
        waiting = [app.name for app in self.apps if not any(shard.is_ready for shard in app.shards)]
        if waiting or not self.apps:
            return False, f"no shard is ready of {', '.join(waiting)}" if waiting else "no app has started"
        keyless = [app.name for app in self.apps if not any(map(app.changes.is_placed, app.all_shards))]
        return not keyless, f"no key of {', '.join(keyless)} belongs to this machine yet" if keyless else "ready"

    def _failing_stores(self) -> list[str]:
        """The shards that cannot load or keep durable state now."""
        totals = self.collector.totals
        return [shard.member.name for app in self.apps for shard in app.shards if is_failing(app.source(shard), totals)]

    def status(self, *, details: bool = False, pins: bool = False) -> dict[str, Any]:
        """Every app with its shards, and the cluster where there is one, for JSON. details: also how many keys each
        keyed dict holds, and the supervisor's own state. pins: they are keys, and for the admin address alone."""
        rows = {"apps": {app.name: self._status_of(app, details=details, pins=pins) for app in self.apps}}
        rows |= {"supervisor": self._own_status()} if details else {}
        return rows if self.cluster is None else rows | {"cluster": self.cluster.watch.status()}

    def _own_status(self) -> dict[str, Any]:
        return {
            "descriptors_left": self._descriptors_left(),
            "admin_refusals": self.collector.totals.counts_by(ADMIN_REFUSALS.name, "onelane.reason"),
        }

    def admin_refused(self, reason: str) -> None:
        """Count a request or a connection that the admin address has refused."""
        self.collector.count(ADMIN_REFUSALS, 1, attributes=(("onelane.reason", reason),))

    def _descriptors_left(self, source: Attributes = ()) -> int | None:
        left = self.collector.totals.value_of(DESCRIPTORS.name, source)
        return None if left is None else int(left)

    def _status_of(self, app: AppSupervisor, *, details: bool, pins: bool) -> dict[str, Any]:
        row = {
            "listen": app.settings.listen,
            "epoch": app.placement.epoch,
            "build": asdict(running_build()),
            "service_config": app.placement.service_config(),
            "shards": [self._shard_status(app, shard, details=details) for shard in app.shards],
            "leaving": [_leaving_status(shard) for shard in app.beside if shard.is_leaving],
            "change": app.changes.status(),
        }
        return row | {"pins": app.changes.pins()} if pins else row

    def _shard_status(self, app: AppSupervisor, shard: SupervisedShard, *, details: bool) -> dict[str, Any]:
        source, totals = app.source(shard), self.collector.totals
        row = {
            "name": shard.member.name,
            "index": shard.index,
            "pid": shard.pid,
            "life": shard.member.life,
            "address": shard.member.address,
            "state": shard.label,
            "restarts": shard.restarts,
            "config": shard.settings.generation,
            "calls": int(totals.sum_of("onelane.calls", source)),
            "forwarded": int(totals.sum_of("onelane.forwards", source)),
            "stalls": int(totals.sum_of("onelane.stalls", source)),
            "connections": {
                "open": int(totals.sum_of("onelane.connections.open", source)),
                "refused": totals.counts_by("onelane.connections.refused", "onelane.reason", source),
                "goaways": totals.counts_by("onelane.connections.goaways", "onelane.reason", source),
                "tls_failures": totals.counts_by("onelane.tls.handshakes", "error.type", source),
            },
            "descriptors_left": self._descriptors_left(source),
            "durable": store_status(app.settings.state.store, source, totals),
            "last_stalls": [asdict(stall) for stall in shard.stalls],
        }
        return row | {"keyed": shard.keyed} if details else row


def _leaving_status(shard: SupervisedShard) -> dict[str, Any]:
    """Of a life that finishes its calls, after its keys have moved."""
    return {"name": shard.member.name, "life": shard.member.life, "pid": shard.pid}
