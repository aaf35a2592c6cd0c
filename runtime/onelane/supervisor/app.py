"""Keeps the shards of one app alive: starts them, restarts those that die, drains them, restarts them one by one."""

import asyncio
import json
import logging
import math
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any

import anyio

from onelane.cluster.control import placement_to_proto
from onelane.config import App
from onelane.core.backoff import backoff_s
from onelane.core.placement import Placement
from onelane.errors import OnelaneError
from onelane.supervisor.lane_watch import LaneWatch
from onelane.supervisor.launcher import Launcher, RunningShard
from onelane.supervisor.shard_state import NOT_YET_READY, REPORTING, RESTARTING, ShardEvent, ShardState, is_possible
from onelane.supervisor.supervised_shard import Incarnation, SupervisedShard
from onelane.telemetry.codec import stall_from_proto
from onelane.telemetry.collector.collector import RESTARTS, Collector
from onelane.telemetry.stats import Attributes
from onelane.v1 import control_pb2

log = logging.getLogger("onelane.supervisor")
SHARD_END_S = 5.0
"""How long a shard may take to end after its calls have."""
DRAIN_MARGIN_S = 2.5
"""How long beyond its grace a shard may take to report that it has drained."""
START_PARTS = 2
"""Parts of a start, each of which may take `start_s`: imports and constructors, and the `start` of all services."""
STEADY_S = 10.0
"""A shard that lived this long is restarted at once when it dies; one that dies young waits longer each time."""
COMMIT_S = 2.0
"""How long to wait for shards to use settings that they have checked; `status` shows which generation each uses."""

TURN_AWAY_PAUSE_S = 0.1
"""After a connection to a drained shard could not be accepted."""


@dataclass(frozen=True, slots=True)
class TelemetryOptions:
    """The signals that shards record."""

    traces: bool = True
    sampler: str = ""
    """As `OTEL_TRACES_SAMPLER` names it; "" for the standard's default."""
    sampler_arg: str = ""
    logs: bool = False


@dataclass(frozen=True, repr=False)
class SharedResources:
    """Resources that all apps of one supervisor share."""

    launcher: Launcher
    app_dir: str
    telemetry: TelemetryOptions
    collector: Collector
    peers: dict[str, str]
    """App name → host:port, for stubs."""
    answer_status: Callable[[RunningShard, int], object]
    """Schedules the answer to a shard that asked for the status of all shards; the number is its request's."""
    start_soon: Callable[..., object]
    """Starts a task of the supervisor: a coroutine function, and its arguments."""
    accepting: Callable[[str], Sequence[str]] = lambda _: ()
    """See `Config.accepting`."""
    identity_key: bytes = b""
    """Of assertions of identity between the apps; without one, none is accepted. Never shown."""


class ShardFailed(OnelaneError):
    """A shard could not start; the app stops. Carries the shard's own error text."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"shard {name} failed to start: {reason.rstrip()}")


class NotRestarted(OnelaneError):
    """A restart that was asked for has not restarted every shard."""


class AppSupervisor:
    """The shards of one app. Owned by the supervisor of all apps."""

    def __init__(self, name: str, settings: App, placement: Placement, shared: SharedResources) -> None:
        self.name = name
        self.settings = settings
        self.placement = placement
        self._shared = shared
        self.shards = [SupervisedShard(member, index) for index, member in enumerate(placement.members)]
        self.lane_watch = LaneWatch(self.shards, settings)
        self.generation = self._proposals = 1
        """Of the services' settings: the one in use, and the newest that was proposed."""
        self._stop = anyio.Event()
        self._restarts = anyio.Lock()
        """Held while a shard restarts: the others serve."""
        self._rng = Random()

    # One shard's incarnations

    async def supervise(self, shard: SupervisedShard) -> None:
        """Run one shard, and again each time it ends, until the app stops.

        Raises:
            ShardFailed: its first start failed.
        """
        failures = 0
        while not self._stop.is_set():
            began = time.monotonic()
            how = await self._run_guarded(shard)
            if self._stop.is_set():
                break
            shard.follow(ShardEvent.ENDED)
            if shard.state is ShardState.STOPPED:
                raise ShardFailed(shard.member.name, how)
            if shard.incarnation is None or not shard.incarnation.is_ready:
                # A restart waits for this start, and tells that it failed.
                shard.ready.set()
            if shard.state is ShardState.RECOVERING:
                failures = 0 if time.monotonic() - began > STEADY_S else failures + 1
                await self._back_off(shard, how, failures)
        shard.follow(ShardEvent.APP_STOPPED)
        shard.pid = 0
        # It will not be ready any more: wake the tasks that wait for it.
        shard.ready.set()

    async def _run_guarded(self, shard: SupervisedShard) -> str:
        """As `_run_once`. Whatever goes wrong, here or in the launch, is one more end of this shard: it is told, a
        back-off follows, and neither the other shards nor the other apps notice.

        Raises:
            ShardFailed: its first start failed.
        """
        try:
            return await self._run_once(shard)
        except ShardFailed:
            raise
        except OSError as error:
            return f"it cannot be run: {error}"
        except Exception as error:
            log.exception("shard.supervision_failed shard=%s", shard.member.name)
            return f"its supervision failed: {type(error).__name__}: {error}"

    async def _run_once(self, shard: SupervisedShard) -> str:
        """Launch a shard and serve it until it ends; how it ended."""
        await self.lane_watch.tell()
        shard.restore_path()
        incarnation = shard.incarnation = Incarnation(await self._shared.launcher.launch(shard.sockets))
        limit_s = START_PARTS * self.settings.start_s
        try:
            with anyio.move_on_after(limit_s) as incarnation.start:
                await incarnation.running.control.send(control_pb2.ToShard(setup=self.setup_of(shard)))
                await self._read_messages(shard, incarnation)
            if incarnation.start.cancelled_caught:
                return f"it was not ready within {limit_s:g} s, so it was killed"
            how = "did not end"
            with anyio.move_on_after(SHARD_END_S):
                how = await incarnation.running.wait()
        finally:
            incarnation.kill()
            self._shared.collector.end_incarnation(self.source(shard), incarnation.received)
        return how

    async def _read_messages(self, shard: SupervisedShard, incarnation: Incarnation) -> None:
        """Act on the messages of a shard until its control line is closed."""
        control = incarnation.running.control
        while (message := await control.receive()) is not None:
            shard.liveness.heard()
            match message.WhichOneof("kind"):
                case "ready":
                    incarnation.is_ready, incarnation.start.deadline = True, math.inf
                    await self._note_ready(shard, message.ready.pid)
                case "failed":
                    if shard.state is ShardState.STARTING:
                        raise ShardFailed(shard.member.name, message.failed.reason)
                    log.error("shard.restart_failed shard=%s reason=%s", shard.member.name, message.failed.reason)
                case "report":
                    self._add(shard, incarnation, message.report)
                case "drained":
                    incarnation.drained.set()
                case "proposed":
                    shard.settings.answers[message.proposed.generation] = message.proposed.fault
                    shard.settings.wake()
                case "committed":
                    shard.settings.generation = message.committed
                    shard.settings.wake()
                case "ask_status":
                    # In a task of its own: the status waits for this shard's report, and this loop reads it.
                    self._shared.answer_status(incarnation.running, message.ask_status)
                case "ask_restart":
                    log.info("supervisor.restart shard=%s it was sent SIGTERM", shard.member.name)
                    # In a task of its own: it waits until no other shard of the app restarts.
                    self._shared.start_soon(self._restart_in_turn, shard, incarnation)
        control.close()

    async def _note_ready(self, shard: SupervisedShard, pid: int) -> None:
        shard.follow(ShardEvent.BECAME_READY)
        shard.pid = pid
        shard.ready.set()
        await self.lane_watch.inform(shard)
        if shard.settings.generation != self.generation:
            # New settings were committed while it was starting.
            await shard.send(control_pb2.ToShard(commit=self._proposal(self.settings.config)))

    def _add(self, shard: SupervisedShard, incarnation: Incarnation, report: control_pb2.Report) -> None:
        if self._shared.collector.receive(self.source(shard), incarnation.received, report):
            shard.keyed = dict(report.keyed)
            shard.stalls += map(stall_from_proto, report.stalls)
        if report.collect in shard.collected:
            shard.collected[report.collect].set()

    async def _back_off(self, shard: SupervisedShard, how: str, failures: int) -> None:
        """Count and log a crash, and wait before the next launch. failures: crashes in a row soon after a launch."""
        shard.restarts += 1
        self._shared.collector.count(RESTARTS, 1, self.source(shard))
        pause_s = backoff_s(failures - 1, base_s=0.05, cap_s=5.0, rng=self._rng) if failures > 1 else 0.0
        log.warning("shard.died shard=%s how=%s restart_in_s=%.3f", shard.member.name, how, pause_s)
        with anyio.move_on_after(pause_s):
            await self._stop.wait()

    def source(self, shard: SupervisedShard) -> Attributes:
        """The attributes that every series of a shard has."""
        return (("onelane.app", self.name), ("onelane.shard", shard.member.name))

    # Settings

    async def propose(self, config: Mapping[str, Any], answer_s: float) -> list[str]:
        """Ask every ready shard whether new settings fit; returns the objections. Changes nothing."""
        self._proposals += 1
        generation = self._proposals
        asked = [shard for shard in self.shards if shard.state is ShardState.READY]
        for shard in asked:
            await shard.send(control_pb2.ToShard(propose=self._proposal(config, generation)))
        with anyio.move_on_after(answer_s):
            for shard in asked:
                while generation not in shard.settings.answers and shard.state is ShardState.READY:
                    await shard.settings.changed.wait()
        # A shard that has died meanwhile is launched with the settings that are decided now.
        return [
            fault
            for shard in asked
            if shard.state is ShardState.READY
            and (
                fault := shard.settings.answers.pop(
                    generation, f"shard {shard.member.name} has not answered in {answer_s:g} s"
                )
            )
        ]

    async def commit(self, config: Mapping[str, Any]) -> None:
        """Send these settings to every ready shard; a shard that starts later begins with them."""
        self.generation = self._proposals
        self.settings = self.settings.model_copy(update={"config": config})
        ready = [shard for shard in self.shards if shard.state is ShardState.READY]
        for shard in ready:
            await shard.send(control_pb2.ToShard(commit=self._proposal(config)))
        with anyio.move_on_after(COMMIT_S):
            for shard in ready:
                while shard.settings.generation != self.generation and shard.state is ShardState.READY:
                    await shard.settings.changed.wait()

    def _proposal(self, config: Mapping[str, Any], generation: int | None = None) -> control_pb2.Settings:
        text = json.dumps(config, default=str)
        return control_pb2.Settings(generation=generation or self.generation, config=text)

    def setup_of(self, shard: SupervisedShard) -> control_pb2.Setup:
        """The first message to a process of this shard, with all that it needs to start."""
        shard.settings.generation = self.generation
        return control_pb2.Setup(
            app=self.name,
            name=shard.member.name,
            index=shard.index,
            settings=self.settings.model_dump_json(),
            address=shard.member.address,
            socket=shard.member.socket,
            peers=self._shared.peers,
            placement=placement_to_proto(self.placement),
            tracing=self._shared.telemetry.traces,
            sampler=self._shared.telemetry.sampler,
            sampler_arg=self._shared.telemetry.sampler_arg,
            logs=self._shared.telemetry.logs,
            app_dir=self._shared.app_dir,
            generation=self.generation,
            identity_key=self._shared.identity_key,
            asserts_to=self._shared.accepting(self.name),
        )

    # Drain, restart, end

    async def drain(self) -> None:
        """Stop the app: let calls under way finish, at most `drain_s`, then end every shard."""
        self._stop.set()
        for shard in self.shards:
            shard.settings.wake()
        # Some drain already; a second order changes nothing.
        draining = [shard for shard in self.shards if shard.state in REPORTING - {ShardState.DRAINED}]
        incarnations = [shard.incarnation for shard in draining if shard.incarnation is not None]
        for shard in draining:
            if shard.state is ShardState.READY:
                shard.follow(ShardEvent.DRAIN_ASKED)
        for incarnation in incarnations:
            await self._send_drain(incarnation)
        with anyio.move_on_after(self.settings.drain_s + DRAIN_MARGIN_S):
            for incarnation in incarnations:
                await incarnation.drained.wait()
        for shard in self.shards:
            # No shard will accept from these: refuse new connections at once instead of queueing them.
            for sock in shard.sockets:
                sock.close()
        # Not before all have drained: a shard that drains may still forward calls to the others.
        async with anyio.create_task_group() as tasks:
            for shard in self.shards:
                tasks.start_soon(self._end, shard)

    @property
    def is_restarting(self) -> bool:
        """A shard restarts, or a restart of all is under way."""
        return self._restarts.locked() or any(shard.state in RESTARTING for shard in self.shards)

    def objection(self, event: ShardEvent, shard: SupervisedShard) -> str:
        """Why a shard cannot be drained or restarted now, or ""."""
        if not is_possible(shard.state, event):
            return f"it is {shard.label}"
        if event is ShardEvent.RESTART_ASKED and self.is_restarting:
            return "another restart is under way, and shards restart one after another"
        return ""

    async def recycle(self) -> None:
        """Restart every shard with fresh code, one after another, each after its calls have finished. A shard that is
        no more ready after it is the last.

        Raises:
            NotRestarted: another restart is under way; or with the shards that were not restarted, and why.
        """
        if self.is_restarting:
            raise NotRestarted(f"{self.name}: another restart is under way")
        async with self._restarts:
            for number, shard in enumerate(self.shards):
                fault = await self._restart_now(shard)
                if fault:
                    left = ", ".join(other.member.name for other in self.shards[number + 1 :])
                    raise NotRestarted(fault + (f"; {left} not restarted either" if left else ""))

    async def _restart_now(self, shard: SupervisedShard) -> str:
        """Restart a shard; why it is not ready now with fresh code, or ""."""
        if self._stop.is_set():
            return f"{shard.member.name} was not restarted: the app stops"
        if not is_possible(shard.state, ShardEvent.RESTART_ASKED):
            return f"{shard.member.name} was not restarted: it is {shard.label}"
        shard.follow(ShardEvent.RESTART_ASKED)
        await self._restart(shard)
        if shard.state is ShardState.READY:
            return ""
        return f"{shard.member.name} " + (
            "was stopped with its app" if self._stop.is_set() else "does not start again, as its log says"
        )

    async def _restart_in_turn(self, shard: SupervisedShard, incarnation: Incarnation) -> None:
        """Restart a shard once no other one restarts, unless it has been restarted by then."""
        async with self._restarts:
            if shard.incarnation is incarnation and (fault := await self._restart_now(shard)):
                log.warning("shard.not_restarted reason=%s", fault)

    async def carry_out_drain(self, shard: SupervisedShard) -> None:
        """After DRAIN_ASKED: let the shard's calls finish; it takes no new call until it is restarted."""
        incarnation = shard.incarnation
        if incarnation is None or not is_possible(shard.state, ShardEvent.DRAIN_DONE):
            return
        await self._send_drain(incarnation)
        with anyio.move_on_after(self.settings.drain_s + DRAIN_MARGIN_S):
            await incarnation.drained.wait()
        # It may have died meanwhile, or the app may have stopped.
        if shard.incarnation is incarnation and is_possible(shard.state, ShardEvent.DRAIN_DONE):
            shard.follow(ShardEvent.DRAIN_DONE)
            await self.lane_watch.tell()

    async def keep_drained(self, shard: SupervisedShard) -> None:
        """As `carry_out_drain`; then close each connection to the shard's own address while it is drained, so that
        clients go elsewhere; and each to the shared address while all that accept from its socket are drained. Else
        they would wait in the queue of the socket, which is there for restarts."""
        await self.carry_out_drain(shard)
        if not shard.sockets or shard.state is not ShardState.DRAINED:
            return
        shared, own, _ = shard.sockets
        acceptors = [other for other in self.shards if other.sockets[0] is shared]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_turn_away, own.dup())
            tasks.start_soon(self._turn_away_while_drained, acceptors, shared)
            await self._while_drained([shard])
            tasks.cancel_scope.cancel()

    async def _turn_away_while_drained(self, acceptors: Sequence[SupervisedShard], shared: socket.socket) -> None:
        """For the last of these shards to be drained. shared: the socket that they accept from."""
        if any(shard.state is not ShardState.DRAINED for shard in acceptors):
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_turn_away, shared.dup())
            await self._while_drained(acceptors)
            tasks.cancel_scope.cancel()

    async def _while_drained(self, shards: Sequence[SupervisedShard]) -> None:
        """Wait until one of these shards is not drained any more, or the app stops."""
        while not self._stop.is_set() and all(shard.state is ShardState.DRAINED for shard in shards):
            changes = [asyncio.ensure_future(shard.settings.changed.wait()) for shard in shards]
            try:
                await asyncio.wait(changes, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for change in changes:
                    change.cancel()

    async def carry_out_restart(self, shard: SupervisedShard) -> None:
        """After RESTART_ASKED: let the shard's calls finish, end its process, and wait until the next one is ready, or
        does not start."""
        async with self._restarts:
            await self._restart(shard)

    async def _restart(self, shard: SupervisedShard) -> None:
        shard.ready = anyio.Event()
        await self.carry_out_drain(shard)
        # If it has died meanwhile, a process with fresh code is on its way already. If the app stops, `drain` ends this
        # shard once all have drained: until then they forward calls to it.
        if shard.state is ShardState.RESTART_STOPPING and not self._stop.is_set():
            # Where its process listens on a socket of its own, nobody would accept from now on, nor wait in a queue.
            with suppress(OSError):
                shard.restore_path()
            await self._end(shard, self.settings.drain_s)
        await shard.ready.wait()

    def kill(self) -> None:
        """End every shard at once."""
        self._stop.set()
        for shard in self.shards:
            if shard.incarnation is not None:
                shard.incarnation.running.kill()

    async def _send_drain(self, incarnation: Incarnation) -> None:
        await incarnation.send(control_pb2.ToShard(drain=control_pb2.Drain(grace_s=self.settings.drain_s)))

    async def _end(self, shard: SupervisedShard, grace_s: float = 0.0) -> None:
        """Tell a shard to end, and kill it if it has not within `SHARD_END_S` after its grace and what its services may
        take to stop.

        grace_s: for the calls that siblings have forwarded; 0 where these have drained as well.
        """
        incarnation = shard.incarnation
        if incarnation is None:
            return
        limit_s = SHARD_END_S + (0.0 if shard.state in NOT_YET_READY else grace_s + self.settings.stop_s)
        await incarnation.send(control_pb2.ToShard(stop=control_pb2.Stop(grace_s=grace_s)))
        with anyio.move_on_after(limit_s) as stopping:
            await incarnation.ended.wait()
        if stopping.cancelled_caught:
            log.error("shard.killed shard=%s it did not end within %.0f s", shard.member.name, limit_s)
            incarnation.running.kill()


async def _turn_away(listening: socket.socket) -> None:
    """Close each connection as it comes, until cancelled. Owns the socket."""
    loop = asyncio.get_running_loop()
    with listening:
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError:
                # No descriptor is left, or the client has gone.
                await anyio.sleep(TURN_AWAY_PAUSE_S)
            else:
                connection.close()
