"""A shard's whole life, the same in a process of its own and inline: set up, serve, drain, end."""

import asyncio
import gc
import itertools
import json
import logging
import os
import secrets
import socket
import sys
import time
import traceback
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from onelane.client.options import Dialling
from onelane.client.ring_channel import DIALLING
from onelane.cluster.control import Control, placement_from_proto
from onelane.cluster.membership import Membership
from onelane.cluster.topology import Topology
from onelane.config import App
from onelane.core import addresses
from onelane.core.clock import Clock, SystemClock
from onelane.core.context import Home, settle
from onelane.core.turns import Turns
from onelane.errors import BadConfig, BadService, OnelaneError, first_of
from onelane.lane.admission import Admission, Rates
from onelane.lane.forwarder import NativeForwarder
from onelane.lane.lane import Lane
from onelane.lane.routing import Router
from onelane.lane.turn_queue import TurnQueue
from onelane.plugins import plug
from onelane.server import interceptors, methods
from onelane.server.call import Call, Metadata
from onelane.server.listener import Bind, Listener, Work
from onelane.server.methods import Method
from onelane.shard import settings
from onelane.shard.pubsub import Siblings
from onelane.shard.shard import Shard
from onelane.shard.siblings import Across
from onelane.shard.timers import Alarms, LoopAlarms
from onelane.shard.watchdog import Watchdog, Watched
from onelane.telemetry.codec import point_to_proto, stall_to_proto
from onelane.telemetry.load import Pulse
from onelane.telemetry.logs import MovedLogs
from onelane.telemetry.logs import pack as pack_logs
from onelane.telemetry.otel import metrics, tracing
from onelane.telemetry.otel.metrics import Bridge
from onelane.telemetry.sampling import NEVER, sampler_of
from onelane.telemetry.spans import pack as pack_spans
from onelane.telemetry.stalls import Stall
from onelane.telemetry.stats import DROPPED, Stats
from onelane.telemetry.tracer import Tracer
from onelane.v1 import control_pb2

log = logging.getLogger("onelane.shard")
TICK_S = 0.1
QUIET_S = 0.05
"""A drain goes on when no call has come for this long."""
QUIET_LIMIT_S = 1.0
STOP_S = 1.0
"""What the last forwarded calls may take once every shard has drained."""
GC_THRESHOLDS = (20_000, 20, 50)


class _Serving:
    """A lane as its listener sees it."""

    def __init__(self, lane: Lane, stats: Stats) -> None:
        self._lane = lane
        self._entries = lane.entries
        # Bound once: it runs for every call.
        self.arrive = lane.arrive  # type: ignore[method-assign]
        connections = stats.counter(
            "onelane.connections", unit="{connection}", description="Connections that came to this shard from a sibling"
        )
        self._steered = connections.at({"onelane.connection.steered": "true"})

    def methods(self) -> Sequence[Method]:
        return [entry.method for entry in self._entries.values()]

    def serve(self, method: Method, call: Call, request: bytes | None) -> Coroutine[Any, Any, bytes]:
        return self._lane.serve(method, call, request)

    def arrive(self, method: Method, call: Call, request: bytes | None) -> Work:
        return self._lane.arrive(method, call, request)

    def resume(self, call: Call) -> Work:
        return self._lane.resume(call)

    def withdraw(self, call: Call, *, late: bool) -> None:
        self._lane.withdraw(call, late=late)

    def home_of(self, method: Method, metadata: Metadata, message: bytes | None) -> str | None:
        return self._lane.home_of(method, metadata, message)

    def steered(self) -> None:
        self._steered.add()


@dataclass(frozen=True, slots=True)
class Means:
    """What a shard runs on: this machine, or what a test gives it."""

    clock: Clock = field(default_factory=SystemClock)
    alarms: Alarms = field(default_factory=LoopAlarms)
    dialling: Dialling = DIALLING
    """How its stubs connect."""


MACHINE = Means()


class Life:
    """A shard from its setup to its end. Owned by `run`."""

    def __init__(
        self,
        setup: control_pb2.Setup,
        control: Control,
        sockets: Sequence[socket.socket],
        means: Means = MACHINE,
    ) -> None:
        self.setup = setup
        self.sockets = sockets
        """Shared, own, and for siblings, where the supervisor holds them; else none."""
        self.control = control
        self.settings = App.model_validate_json(setup.settings)
        self.stats = Stats()
        environment = {"OTEL_TRACES_SAMPLER": setup.sampler, "OTEL_TRACES_SAMPLER_ARG": setup.sampler_arg}
        sampler = sampler_of({k: v for k, v in environment.items() if v}) if setup.tracing else NEVER
        self.tracer = Tracer(
            shard=setup.name,
            sampler=sampler,
            clock=means.clock,
            rng=Random(),
            records_all=setup.tracing and self.settings.tail is not None,
        )
        self.shard = Shard(
            app=setup.app,
            name=setup.name,
            index=setup.index,
            settings=self.settings,
            peers=dict(setup.peers),
            stats=self.stats,
            tracer=self.tracer,
            alarms=means.alarms,
            dialling=means.dialling,
        )
        self.services: list[object] = []
        self.forwarder = NativeForwarder()
        placement = placement_from_proto(setup.placement)
        self.membership: Membership = plug("onelane.memberships", self.settings.membership)(placement)
        router = Router(setup.name, placement)
        turns = Turns(
            setup.name,
            draw=lambda: secrets.randbits(64),
            per_key=self.settings.max_waiting_per_key,
            in_all=self.settings.max_in_flight,
        )
        admission = Admission(
            setup.name,
            max_in_flight=self.settings.max_in_flight,
            max_late_s=self.settings.max_late_s,
            rates=Rates(rate, max(1.0, rate)) if (rate := self.settings.max_rate_per_key) else None,
        )
        self.lane = Lane(
            router=router,
            queue=TurnQueue(turns, router),
            admission=admission,
            forwarder=self.forwarder,
            stats=self.stats,
            tracer=self.tracer,
        )
        self._pulse = Pulse(
            self.stats, means.clock, self.lane.hot_keys, tick_s=TICK_S, show_keys=self.settings.show_keys
        )
        self.across = Across(
            self.lane,
            tracer=self.tracer,
            stats=self.stats,
            deadline_s=self.settings.deadline_s,
            incarnation=secrets.randbits(64),
            capacity=self.settings.max_lag,
            limit=self.settings.max_published,
        )
        self.shard.join(self.lane, self.across)
        self.topology = Topology(
            self.membership,
            app=setup.app,
            listen=self.settings.listen,
            keys=self.settings.keys,
            status=self.ask_status,
        )
        self.listener: Listener = plug("onelane.listeners", self.settings.listener)()
        self._asked: dict[int, asyncio.Future[str]] = {}
        self._numbers = itertools.count(1)
        self._reports = itertools.count(1)
        self._clock = means.clock
        self._moved_logs = MovedLogs(setup.name) if setup.logs else None
        self._dropped = self.stats.counter(DROPPED.name, unit=DROPPED.unit, description=DROPPED.description)
        self._committed: tuple[int, Any] | None = None
        """A generation of the services' settings, to be used from the next tick on."""
        self._interceptors: list[Any] = []
        self._health: Any = None
        self._stalls: list[Stall] = []
        self._stalled = self.stats.counter(
            "onelane.stalls", unit="{stall}", description="Times that the lane did not turn"
        )

    def settle(self, *, alone: bool) -> None:
        """Make what runs in this context the shard's. alone: all of this process is."""
        home = Home(self.setup.name, self.tracer, Bridge(self.stats, self._clock.now))
        settle(home, alone=alone)
        tracing.install()
        metrics.install()
        if self._moved_logs is not None:
            logging.getLogger().addHandler(self._moved_logs)

    async def start(self) -> None:
        """Make every service object, then listen; nothing listens unless all of them could be made."""
        self._add_services()
        await self.shard.wait_ready()
        await self.listener.start(self._binds(), _Serving(self.lane, self.stats), self.settings)

    def _binds(self) -> list[Bind]:
        setup = self.setup
        own = addresses.join(addresses.split(self.settings.listen)[0], addresses.split(setup.address)[1])
        shared, mine, siblings = self.sockets or (None, None, None)
        if siblings is None:
            Path(setup.socket).unlink(missing_ok=True)
        return [
            Bind(self.settings.listen, shared=True, sock=shared),
            Bind(own, sock=mine),
            Bind(f"unix:{setup.socket}", trusted=True, sock=siblings),
        ]

    def _add_services(self) -> None:
        configured, turns = dict(self.settings.keys), dict(self.settings.turns)
        self._interceptors = interceptors.load(self.settings.interceptors)
        faults: list[str] = []
        for name in self.settings.services:
            cls = methods.servicer_class(name)
            try:
                service = methods.make(cls, self.shard)
                self.services.append(service)
                for method in methods.methods_of(service, configured=configured, turns=turns):
                    self._add(method, name)
            except BadService as error:
                faults.append(f"{name}\n{error}")
        if faults:
            raise BadService("\n".join(faults))
        for ours in (self.topology, Siblings(self.across.inbox)):
            for method in methods.methods_of(ours, configured={}):
                self.lane.add(method)
        if self.settings.health:
            self._add_health()
        if self.settings.serves_reflection:
            self._add_reflection()
        self._check_configured("keys", configured)
        self._check_configured("turns", turns)

    def _add(self, method: Method, service: str) -> None:
        if method.path in self.lane.entries:
            raise BadService(f"{method.name} is served already by another service than {service}")
        self.lane.add(interceptors.behind(method, self._interceptors))

    def _check_configured(self, table: str, configured: Mapping[str, str]) -> None:
        services = {entry.method.name.rpartition("/")[0] for entry in self.lane.entries.values()}
        known = {entry.method.name for entry in self.lane.entries.values()} | {f"{name}/*" for name in services}
        if unknown := sorted(set(configured) - known):
            raise BadService(f"{table}: no service has {unknown}")

    def _add_health(self) -> None:
        from grpc_health.v1 import health, health_pb2, health_pb2_grpc

        self._health = health.aio.HealthServicer()
        add = health_pb2_grpc.add_HealthServicer_to_server
        for method in methods.methods_of(self._health, configured={}, add=add):
            self.lane.add(method)
        self._serving = health_pb2.HealthCheckResponse.SERVING

    def _add_reflection(self) -> None:
        from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

        names = {entry.method.name.rpartition("/")[0] for entry in self.lane.entries.values()}
        names.add("grpc.reflection.v1alpha.ServerReflection")
        servicer = reflection.aio.ReflectionServicer(sorted(names))
        add = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
        for method in methods.methods_of(servicer, configured={}, add=add):
            self.lane.add(method)
            # grpcio ships v1alpha alone; newer clients ask for v1, which has the same messages.
            path = method.path.replace("v1alpha", "v1")
            self.lane.add(replace(method, path=path))

    async def set_health(self, *, serving: bool) -> None:
        if self._health is None:
            return
        if not serving:
            await self._health.enter_graceful_shutdown()
            return
        for name in {"", *(entry.method.name.rpartition("/")[0] for entry in self.lane.entries.values())}:
            await self._health.set(name, self._serving)

    async def follow(self) -> None:
        """Give the lane every placement that the membership names."""
        async for placement in self.membership.watch():
            self.lane.place(placement)

    def watched(self) -> Watched:
        """What a watchdog is to know of this shard."""
        return Watched(
            self.setup.name,
            self.settings.stall_s,
            self.settings.replace_stalled_s,
            packages=frozenset(name.partition(":")[0].partition(".")[0] for name in self.settings.services),
            calls=lambda: self.lane.received,
            took=self._took,
        )

    def _took(self, stall: Stall, is_told: bool) -> None:
        self._stalled.add(1, {"onelane.stall.kind": stall.kind})
        if is_told:
            self._stalls.append(stall)

    # The tick

    async def tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            await self.tick_once()

    async def tick_once(self) -> None:
        """Take what is to be taken between two ticks, and move out what was counted."""
        await self._configure()
        self._pulse.beat()
        await self.report()

    async def _configure(self) -> None:
        """Use the settings that were committed since the last tick."""
        if self._committed is None:
            return
        (generation, config), self._committed = self._committed, None
        self.shard.configure(config)
        await self.control.send(control_pb2.ToSupervisor(committed=generation))

    async def _judge(self, proposal: control_pb2.Settings) -> None:
        """Say whether new settings fit."""
        fault = ""
        try:
            self._settings_of(proposal)
        except BadConfig as error:
            fault = str(error)
        except Exception as error:
            # A validator of the service's own may raise anything.
            fault = f"apps.{self.setup.app}.config: {error!r}"
        answer = control_pb2.Proposed(generation=proposal.generation, fault=fault)
        await self.control.send(control_pb2.ToSupervisor(proposed=answer))

    def _settings_of(self, message: control_pb2.Settings) -> Any:
        return settings.made(self.settings.config_type, json.loads(message.config), app=self.setup.app)

    async def report(self, *, collect: int = 0, final: bool = False) -> None:
        """Move out what was counted since the last time. final: nothing comes after this."""
        spans = self.tracer.take()
        records = self._moved_logs.take() if self._moved_logs else []
        self._count_dropped()
        points = self.stats.take()
        hot = self._pulse.hottest()
        if not (points or spans or records or hot or collect or final):
            return
        report = control_pb2.Report(
            seq=next(self._reports),
            points=map(point_to_proto, points),
            spans=pack_spans(spans) if spans else b"",
            logs=pack_logs(records) if records else b"",
            keyed=self.shard.keyed_counts(),
            collect=collect,
            stalls=map(stall_to_proto, self._stalls),
            final=final,
            hot_keys=[control_pb2.HotKey(key=one.key, calls=one.calls, error=one.error) for one in hot],
        )
        self._stalls = []
        await self.control.send(control_pb2.ToSupervisor(report=report))

    def _count_dropped(self) -> None:
        """Count what did not fit between two ticks."""
        for signal, source in (("spans", self.tracer), ("logs", self._moved_logs)):
            if source is not None and source.dropped:
                self._dropped.add(source.dropped, {"onelane.signal": signal, "onelane.reason": "tick_full"})
                source.dropped = 0

    # What the supervisor says

    async def obey(self) -> None:
        """Follow the supervisor until it says stop, or is gone."""
        draining: asyncio.Task[None] | None = None
        async with asyncio.TaskGroup() as tasks:
            while (message := await self.control.receive()) is not None:
                match message.WhichOneof("kind"):
                    case "placement":
                        self.membership.offer(placement_from_proto(message.placement))
                    case "collect":
                        await self.report(collect=message.collect)
                    case "status":
                        self._answered(message.status)
                    case "drain":
                        draining = draining or tasks.create_task(self._drain(message.drain.grace_s))
                    case "propose":
                        await self._judge(message.propose)
                    case "commit":
                        self._committed = (message.commit.generation, self._settings_of(message.commit))
                    case "stop":
                        break
            if draining is not None:
                draining.cancel()

    async def _drain(self, grace_s: float) -> None:
        await self.set_health(serving=False)
        await self.listener.drain()
        await self._wait_quiet()
        try:
            async with asyncio.timeout(grace_s):
                await self.lane.drain()
                await self._wait_quiet()
        except TimeoutError:
            log.warning("shard.drain_cut_short shard=%s under_way=%d", self.setup.name, self.lane.own_in_flight)
        await self.control.send(control_pb2.ToSupervisor(drained=control_pb2.Drained()))

    async def _wait_quiet(self) -> None:
        """Wait until no call has come for a moment: gRPC's core may still hold some that it had taken."""
        give_up = time.monotonic() + QUIET_LIMIT_S
        seen = -1
        while seen != self.lane.received and time.monotonic() < give_up:
            seen = self.lane.received
            await asyncio.sleep(QUIET_S)

    async def ask_status(self) -> str:
        """Ask the supervisor for the state of all shards, as JSON."""
        number = next(self._numbers)
        self._asked[number] = asyncio.get_running_loop().create_future()
        await self.control.send(control_pb2.ToSupervisor(ask_status=number))
        try:
            return await self._asked[number]
        finally:
            del self._asked[number]

    def _answered(self, answer: control_pb2.StatusAnswer) -> None:
        if (asked := self._asked.get(answer.number)) is not None and not asked.done():
            asked.set_result(answer.json)

    async def end(self) -> None:
        await self.listener.stop(STOP_S)
        await self.forwarder.aclose()
        await self.across.aclose()
        await self.shard.aclose()
        await self.report(final=True)
        if self._moved_logs is not None:
            logging.getLogger().removeHandler(self._moved_logs)


def _settle() -> None:
    """What stands now lives as long as the shard: let the garbage collector never look at it again, and look less
    often at the rest. Calls make few cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _reason(error: Exception) -> str:
    """Why the shard does not start: our own error says it; any other is named first, and its traceback follows."""
    if isinstance(error, OnelaneError):
        return str(error)
    cause = first_of(error) if isinstance(error, BaseExceptionGroup) else error
    # Of a SyntaxError its place stands before its name, indented; notes stand behind.
    name = next(line for line in traceback.format_exception_only(cause) if not line.startswith(" "))
    return name + "".join(traceback.format_exception(error))


async def run(control: Control, watchdog: Watchdog, sockets: Sequence[socket.socket] = ()) -> bool:
    """Live as one shard: set up, serve, drain, end. False where it could not start.

    watchdog: watches this loop. sockets: those that it shall listen on, held by the supervisor: shared, own, and for
    siblings; or none.
    """
    first = await control.receive()
    if first is None:
        return False
    if first.setup.app_dir and first.setup.app_dir not in sys.path:
        sys.path.insert(0, first.setup.app_dir)
    life = None
    try:
        life = Life(first.setup, control, sockets)
        life.settle(alone=watchdog.may_exit)
        await life.start()
    except Exception as error:
        await control.send(control_pb2.ToSupervisor(failed=control_pb2.Failed(reason=_reason(error))))
        return False
    await life.set_health(serving=True)
    _settle()
    if life.settings.stall_s:
        watchdog.attend(life.watched())
    await control.send(control_pb2.ToSupervisor(ready=control_pb2.Ready(pid=os.getpid())))
    try:
        async with asyncio.TaskGroup() as tasks:
            ours = [tasks.create_task(life.tick()), tasks.create_task(life.follow())]
            await life.obey()
            for task in ours:
                task.cancel()
    finally:
        watchdog.leave(life.setup.name)
    await life.end()
    return True
