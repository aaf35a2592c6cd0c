"""Starts, watches, restarts and drains the shards of every app of a file; adds their statistics up.

Promises: it loads no grpcio; a shard that dies is restarted with back-off and the others are left alone; what the
shards counted is what is exported, and a scrape asks every shard first, so the sum is exact.
"""

import itertools
import json
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from random import Random
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread

from onelane import ports
from onelane.config import PORT_STRIDE, App, Config
from onelane.control import placement_to_proto, point_from_proto, span_from_proto
from onelane.errors import BadConfig, OnelaneError, first_of
from onelane.launcher import Launcher, Running
from onelane.placement import Member, Placement
from onelane.retry import backoff_s
from onelane.sinks import Sink
from onelane.sinks.prometheus import PrometheusSink
from onelane.stats import Instrument, Point, Totals
from onelane.v1 import control_pb2

log = logging.getLogger("onelane.supervisor")
COLLECT_S = 0.5
"""How long a scrape waits for shards that do not answer."""
CLOSE_S = 3.0
"""How long telemetry may take to leave at the end."""
STOP_S = 5.0
"""How long a shard may take to end after its calls have."""
RESTARTS = Instrument("onelane.restarts", "{restart}", "Shards started anew after they died")


class ShardFailed(OnelaneError):
    """A shard could not start; the app stops. Carries the shard's own words."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"shard {name} failed to start: {reason.rstrip()}")


@dataclass
class ShardState:
    """One shard as its supervisor sees it."""

    member: Member
    index: int
    state: str = "starting"
    """starting, ready, draining, restarting, stopped."""
    pid: int = 0
    restarts: int = 0
    keyed: dict[str, int] = field(default_factory=dict)
    running: Running | None = None
    born: bool = False
    """It has been ready once: from then on a start that fails is tried again."""
    recycling: bool = False
    """It ends because we asked it to, and is started again at once."""
    ready: anyio.Event = field(default_factory=anyio.Event)
    drained: anyio.Event = field(default_factory=anyio.Event)
    collected: dict[int, anyio.Event] = field(default_factory=dict)


class AppSupervisor:
    """The shards of one app. Owned by its supervisor."""

    def __init__(self, name: str, settings: App, placement: Placement, owner: "Supervisor") -> None:
        self.name = name
        self.settings = settings
        self.placement = placement
        self.owner = owner
        self.shards = [ShardState(member, index) for index, member in enumerate(placement.members)]
        self.stopping = False
        self._rng = Random()

    async def keep(self, shard: ShardState) -> None:
        """Run one shard, and again each time it dies, until the app stops.

        Raises:
            ShardFailed: its first start failed.
        """
        failures = 0
        while not self.stopping:
            shard.running = await self.owner.launcher.launch()
            shard.drained = anyio.Event()
            began = time.monotonic()
            try:
                how = await self._accompany(shard, shard.running)
            finally:
                shard.running.kill()
            self.owner.totals.drop_gauges(self._source(shard))
            if self.stopping:
                break
            if shard.recycling:
                shard.recycling, shard.state = False, "starting"
                continue
            shard.state = "restarting"
            shard.restarts += 1
            self.owner.totals.add([Point(RESTARTS, "count", (), 1)], extra=self._source(shard))
            failures = 0 if time.monotonic() - began > 10 else failures + 1
            pause = backoff_s(failures - 1, base_s=0.05, cap_s=5.0, rng=self._rng) if failures > 1 else 0.0
            log.warning("shard.died shard=%s how=%s restart_in_s=%.3f", shard.member.name, how, pause)
            await anyio.sleep(pause)
        shard.state, shard.pid = "stopped", 0
        # Whoever waits for the start need not wait any more.
        shard.ready.set()

    async def _accompany(self, shard: ShardState, running: Running) -> str:
        """Talk with one running shard until it ends; how it ended."""
        await running.control.send(control_pb2.ToShard(setup=self._setup(shard)))
        while (message := await running.control.receive()) is not None:
            match message.WhichOneof("kind"):
                case "ready":
                    shard.pid, shard.state, shard.born = message.ready.pid, "ready", True
                    shard.ready.set()
                case "failed":
                    if not shard.born:
                        raise ShardFailed(shard.member.name, message.failed.reason)
                    log.error("shard.restart_failed shard=%s reason=%s", shard.member.name, message.failed.reason)
                case "report":
                    self._add(shard, message.report)
                case "drained":
                    shard.drained.set()
                case "ask_status":
                    await self._answer(running, message.ask_status)
        running.control.close()
        how = "did not end"
        with anyio.move_on_after(STOP_S):
            how = await running.wait()
        if not shard.born and not self.stopping:
            raise ShardFailed(shard.member.name, how)
        return how

    async def _answer(self, running: Running, number: int) -> None:
        # Asked for by a shard whose messages we are reading here, so it must not wait for that shard's report.
        self.owner.tasks.start_soon(self._answer_later, running, number)

    async def _answer_later(self, running: Running, number: int) -> None:
        await self.owner.collect()
        answer = control_pb2.StatusAnswer(number=number, json=json.dumps(self.owner.status(details=True)))
        await running.control.send(control_pb2.ToShard(status=answer))

    def _add(self, shard: ShardState, report: control_pb2.Report) -> None:
        self.owner.totals.add(map(point_from_proto, report.points), extra=self._source(shard))
        shard.keyed = dict(report.keyed)
        if report.spans:
            spans = [span_from_proto(span) for span in report.spans]
            for sink in self.owner.sinks:
                sink.spans(self.name, shard.member.name, spans)
        if report.collect in shard.collected:
            shard.collected[report.collect].set()

    def _source(self, shard: ShardState) -> tuple[tuple[str, str], ...]:
        return (("onelane.app", self.name), ("onelane.shard", shard.member.name))

    def _setup(self, shard: ShardState) -> control_pb2.Setup:
        environment = os.environ
        return control_pb2.Setup(
            app=self.name,
            name=shard.member.name,
            index=shard.index,
            settings=self.settings.model_dump_json(),
            address=shard.member.address,
            socket=shard.member.socket,
            peers=self.owner.peers,
            placement=placement_to_proto(self.placement),
            tracing=self.owner.tracing,
            sampler=environment.get("OTEL_TRACES_SAMPLER", ""),
            sampler_arg=environment.get("OTEL_TRACES_SAMPLER_ARG", ""),
            app_dir=self.owner.app_dir,
        )

    async def drain(self) -> None:
        """Let what is under way finish, within the app's bound, then end every shard."""
        self.stopping = True
        ready = [shard for shard in self.shards if shard.state == "ready" and shard.running is not None]
        for shard in ready:
            shard.state = "draining"
            await self._tell(shard, control_pb2.ToShard(drain=control_pb2.Drain(grace_s=self.settings.drain_s)))
        with anyio.move_on_after(self.settings.drain_s + 2.5):
            for shard in ready:
                await shard.drained.wait()
        # Only now: until the last one has drained, it may still forward to the others.
        for shard in self.shards:
            await self._tell(shard, control_pb2.ToShard(stop=control_pb2.Stop()))

    async def recycle(self) -> None:
        """Restart every shard with fresh code, one after another, each after its calls have finished."""
        for shard in self.shards:
            if shard.state != "ready" or self.stopping:
                continue
            shard.state, shard.ready = "draining", anyio.Event()
            await self._tell(shard, control_pb2.ToShard(drain=control_pb2.Drain(grace_s=self.settings.drain_s)))
            with anyio.move_on_after(self.settings.drain_s + 2.5):
                await shard.drained.wait()
            shard.recycling = True
            await self._tell(shard, control_pb2.ToShard(stop=control_pb2.Stop()))
            await shard.ready.wait()

    async def _tell(self, shard: ShardState, message: control_pb2.ToShard) -> None:
        if shard.running is not None:
            await shard.running.control.send(message)


class Supervisor:
    """All apps of one file. Made once; `run` is its whole life."""

    def __init__(
        self, config: Config, launcher: Launcher, *, app_dir: str, sinks: Sequence[Sink], tracing: bool
    ) -> None:
        self.config = config
        self.launcher = launcher
        self.app_dir = app_dir
        self.prometheus = PrometheusSink()
        self.sinks: list[Sink] = [self.prometheus, *sinks]
        self.tracing = tracing
        self.totals = Totals()
        self.apps: list[AppSupervisor] = []
        self.peers: dict[str, str] = {}
        self.tasks: anyio.abc.TaskGroup
        self.stop_asked = anyio.Event()
        self._numbers = itertools.count(1)

    async def run(self, *, on_ready: Callable[[], Any] = lambda: None) -> None:
        """Start every shard, call `on_ready`, serve until `stop_asked`, drain, end.

        Raises:
            PortTaken, BadConfig: before anything was started.
            ShardFailed: a shard could not start; the others have been ended.
        """
        async with AsyncExitStack() as stack:
            folder = Path(tempfile.mkdtemp(prefix="onelane-", dir=os.environ.get("RUNTIME_DIRECTORY") or None))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            held = self._claim(folder, stack)
            try:
                await self._serve(held, on_ready)
            except BaseExceptionGroup as group:
                raise first_of(group) from None
            finally:
                with anyio.CancelScope(shield=True):
                    await self._flush()

    def _claim(self, folder: Path, stack: AsyncExitStack) -> list[socket.socket]:
        """Lay out every app's addresses and make sure that nobody else has them. Returns what to let go of."""
        own: list[socket.socket] = []
        epoch = int(time.time())
        for name, app in self.config.apps.items():
            listen, held = ports.claim(app.listen, shared=True)
            stack.callback(held.close)
            settings = app.model_copy(update={"listen": listen})
            members = []
            for index in range(app.shard_count):
                address, sock = ports.claim(_own_address(app, listen, index), shared=False)
                own.append(sock)
                stack.callback(sock.close)
                known_as = ports.join(app.advertise or ports.split(address)[0], ports.split(address)[1])
                members.append(Member(f"{name}-{index}", known_as, str(folder / f"{name}-{index}.sock")))
            pins = {key: members[index].name for key, index in app.pins.items()}
            placement = Placement(epoch, tuple(members), app.points, pins)
            self.apps.append(AppSupervisor(name, settings, placement, self))
        here = {app.name: ports.reachable(app.settings.listen) for app in self.apps}
        self.peers = dict(self.config.peers) | here
        return own

    async def _serve(self, held: list[socket.socket], on_ready: Callable[[], Any]) -> None:
        for sock in held:
            sock.close()
        async with anyio.create_task_group() as self.tasks:
            async with anyio.create_task_group() as keepers:
                self.tasks.start_soon(self._drain_when_asked)
                # Last to first, so that those who are called listen before their callers start.
                for app in reversed(self.apps):
                    for shard in app.shards:
                        keepers.start_soon(app.keep, shard)
                    for shard in app.shards:
                        await shard.ready.wait()
                self.tasks.start_soon(self._feed_sinks)
                if not self.stop_asked.is_set():
                    on_ready()
            self.tasks.cancel_scope.cancel()

    async def _drain_when_asked(self) -> None:
        await self.stop_asked.wait()
        # In the order of the file, callers first: what they have under way may still call the later ones.
        for app in self.apps:
            await app.drain()

    async def recycle(self) -> None:
        """Restart every shard of every app, one after another."""
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        for app in self.apps:
            await app.recycle()
        log.info("supervisor.recycled")
        notify("READY=1")

    async def _feed_sinks(self) -> None:
        while True:
            await anyio.sleep(1.0)
            self._feed()

    def _feed(self) -> None:
        points = self.totals.points()
        for sink in self.sinks:
            sink.points(points)

    async def _flush(self) -> None:
        self._feed()
        for sink in self.sinks:
            await anyio.to_thread.run_sync(sink.close, CLOSE_S)

    def kill(self) -> None:
        """End every shard at once."""
        for app in self.apps:
            app.stopping = True
            for shard in app.shards:
                if shard.running is not None:
                    shard.running.kill()

    async def collect(self) -> None:
        """Have every ready shard report now; a shard that does not answer is waited for briefly."""
        number = next(self._numbers)
        ready = [(a, s) for a in self.apps for s in a.shards if s.state in ("ready", "draining") and s.running]
        for _, shard in ready:
            shard.collected[number] = anyio.Event()
            assert shard.running is not None
            await shard.running.control.send(control_pb2.ToShard(collect=number))
        with anyio.move_on_after(COLLECT_S):
            for _, shard in ready:
                await shard.collected[number].wait()
        for _, shard in ready:
            del shard.collected[number]

    async def metrics(self) -> bytes:
        """Prometheus text, exact as of now."""
        await self.collect()
        self.prometheus.points(self.totals.points())
        return self.prometheus.render()

    def status(self, *, details: bool = False) -> dict[str, Any]:
        """Every app with its shards. details: also how many keys each keyed dict holds."""
        return {"apps": {app.name: self._status_of(app, details=details) for app in self.apps}}

    def _status_of(self, app: AppSupervisor, *, details: bool) -> dict[str, Any]:
        return {
            "listen": app.settings.listen,
            "epoch": app.placement.epoch,
            "service_config": app.placement.service_config(),
            "shards": [self._shard_status(app, shard, details=details) for shard in app.shards],
        }

    def _shard_status(self, app: AppSupervisor, shard: ShardState, *, details: bool) -> dict[str, Any]:
        source = (("onelane.app", app.name), ("onelane.shard", shard.member.name))
        row = {
            "name": shard.member.name,
            "index": shard.index,
            "pid": shard.pid,
            "address": shard.member.address,
            "state": shard.state,
            "restarts": shard.restarts,
            "calls": int(self.totals.sum_of("onelane.calls", source)),
            "forwarded": int(self.totals.sum_of("onelane.forwards", source)),
        }
        return row | {"keyed": shard.keyed} if details else row


def _own_address(app: App, listen: str, index: int) -> str:
    host, port = ports.split(listen)
    if app.own_port is not None:
        return ports.join(host, app.own_port + index)
    if app.listen.endswith(":0"):
        return ports.join(host, 0)
    own = port + PORT_STRIDE * (index + 1)
    if own > 65535:
        raise BadConfig("configuration", [f"shard {index} would have port {own}, past 65535: set own_port"])
    return ports.join(host, own)


async def obey_signals(supervisor: Supervisor) -> None:
    """SIGTERM or SIGINT drains; a second one ends everything at once. SIGHUP restarts the shards one by one."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            if number == signal.SIGHUP:
                supervisor.tasks.start_soon(supervisor.recycle)
                continue
            if supervisor.stop_asked.is_set():
                supervisor.kill()
                sys.stderr.flush()
                os._exit(130)
            supervisor.stop_asked.set()


def otlp_sinks(environment: dict[str, str]) -> tuple[list[Sink], bool]:
    """The OTLP sink where the `OTEL_*` variables ask for one, and whether they ask for traces.

    Raises:
        BadConfig: they ask for a protocol that is not offered here.
    """
    if not any(environment.get(f"OTEL_EXPORTER_OTLP_{part}ENDPOINT") for part in ("", "TRACES_", "METRICS_")):
        return [], False
    # Loaded only where it is used: the SDK costs a tenth of a second.
    sink = next(p for p in entry_points(group="onelane.sinks") if p.name == "otlp").load()
    wants = sys.modules[sink.__module__].wants
    made: Sink = sink(environment)
    return [made], bool(wants(environment, "TRACES"))


def notify(state: str) -> None:
    """Tell systemd, where it listens (`$NOTIFY_SOCKET`)."""
    target = os.environ.get("NOTIFY_SOCKET")
    if not target:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.sendto(state.encode(), "\0" + target[1:] if target.startswith("@") else target)
