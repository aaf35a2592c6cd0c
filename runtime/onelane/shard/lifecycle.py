"""The life of a shard, the same in a process of its own and inline: start, serve, drain, stop."""

import asyncio
import gc
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from onelane import plugins
from onelane.cluster.control import Control, fence_from_proto, member_from_proto, placement_from_proto
from onelane.core import addresses
from onelane.core.context import bind_shard
from onelane.core.placement import Placement
from onelane.core.trace_context import parse_traceparent
from onelane.errors import BadConfig, OnelaneError, ServiceRaised, located
from onelane.lane.routing import DRAINED, UNRESPONSIVE
from onelane.server import tls, unix_sockets
from onelane.server.call import Call
from onelane.server.call_state import ARRIVED, DONE
from onelane.server.listener import Bind
from onelane.shard.drain_log import DrainLog
from onelane.shard.reporter import TICK_S
from onelane.shard.watchdog import Watchdog, WatchedShard
from onelane.shard.wiring import MACHINE, Environment, build_parts
from onelane.telemetry.otel import metrics, tracing
from onelane.v1 import control_pb2
from onelane.wire.http2 import keep_freed_memory

log = logging.getLogger("onelane.shard")
QUIET_S = 0.05
"""A drain goes on when no call has come for this long."""
QUIET_LIMIT_S = 1.0
STOP_S = 1.0
"""The least time that the last forwarded calls have to end, once the shard has drained."""
GC_THRESHOLDS = (20_000, 20, 50)


class ShardLifecycle:
    """Starts, runs and stops the parts of one shard. Owned by `run`."""

    def __init__(
        self,
        setup: control_pb2.Setup,
        control: Control,
        sockets: Sequence[socket.socket],
        environment: Environment = MACHINE,
    ) -> None:
        """sockets: shared, own, and for siblings, where the supervisor holds them; else none. One more for links, where
        the setup has them."""
        self.parts = build_parts(setup, control, environment)
        self._setup = setup
        self._control = control
        self._sockets = sockets
        self._is_serving: bool | None = None
        """What health checks are told; None before the start is over."""

    # Start

    async def start(self, *, whole_process: bool) -> None:
        """Make every servicer, then listen; nothing listens unless all servicers could be made.

        whole_process: all threads of this process work for this shard, not only what runs in this context.
        """
        self.load(whole_process=whole_process)
        await self.parts.shard.wait_ready()
        if self.parts.access.token_keys is not None:
            await self.parts.access.token_keys.start()
        await self.parts.services.start()
        if self._setup.HasField("change"):
            self._prepare(self._setup.change, has_just_started=True)
        await self.parts.listener.start(self._binds(), self.parts.serving, self.parts.settings)
        self.parts.reminders.start()

    def load(self, *, whole_process: bool) -> None:
        """Make every servicer, and check the files that the listener will need.

        Raises:
            BadConfig, BadService: the file, or the code that it names, has a fault.
        """
        parts = self.parts
        bind_shard(parts.binding, whole_process=whole_process)
        tracing.install()
        metrics.install()
        if parts.logs is not None:
            logging.getLogger().addHandler(parts.logs)
        if parts.settings.tls is not None:
            with located(f"apps.{self._setup.app}"):
                tls.server_context(parts.settings.tls)
        parts.services.load()
        if parts.access.token_keys is not None:
            with located(f"apps.{self._setup.app}"):
                parts.access.token_keys.load()

    def _binds(self) -> list[Bind]:
        setup, listen = self._setup, self.parts.settings.listen
        own_address = addresses.join(addresses.split(listen)[0], addresses.split(setup.address)[1])
        shared, own, siblings, *more = self._sockets or (None, None, None)
        if siblings is None:
            unix_sockets.make_way(setup.socket)
        binds = [
            Bind(listen, shared=True, sock=shared),
            Bind(own_address, sock=own),
            Bind(f"unix:{setup.socket}", trusted=True, sock=siblings),
        ]
        if self.parts.links is not None:
            (link,) = more
            binds.append(Bind(addresses.join(*link.getsockname()[:2]), trusted=True, sock=link, links=self.parts.links))
        return binds

    # Serve

    async def serve(self, watchdog: Watchdog) -> None:
        """Report ready, then tick and follow placements until the supervisor says stop."""
        if self.parts.settings.stall_s:
            watchdog.attend(self._watched())
        try:
            await self._control.send(control_pb2.ToSupervisor(ready=control_pb2.Ready(pid=os.getpid())))
            async with asyncio.TaskGroup() as tasks:
                background = [tasks.create_task(self._tick_regularly()), tasks.create_task(self.follow_placements())]
                await self._follow_orders()
                for task in background:
                    task.cancel()
        finally:
            watchdog.leave(self._setup.name)

    def _watched(self) -> WatchedShard:
        settings, lane = self.parts.settings, self.parts.lane
        return WatchedShard(
            self._setup.name,
            settings.stall_s,
            settings.replace_stalled_s,
            packages=frozenset(name.partition(":")[0].partition(".")[0] for name in settings.services),
            calls_received=lambda: lane.received,
            on_stall=self.parts.reporter.add_stall,
        )

    async def _tick_regularly(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            await self.tick()

    async def tick(self) -> None:
        """Apply committed settings, measure load, report."""
        await self.parts.settings_vote.apply()
        self.parts.load.tick()
        await self.parts.reporter.report()

    async def follow_placements(self) -> None:
        """Give the lane every placement that the membership announces."""
        async for placement in self.parts.membership.watch():
            self.parts.handoff.placed(placement)
            self.parts.lane.place(placement)
            self.parts.reminders.placed()
            sockets = {member.socket for member in self.parts.lane.router.siblings()}
            self.parts.forwarder.keep(sockets)
            self.parts.sibling_channels.keep(sockets)
            await self.tell_health(placement)

    async def tell_health(self, placement: Placement) -> None:
        """Answer health checks by whether this machine owns keys: its shards share the port at which they are asked."""
        serving = any(not member.is_remote for member in placement.members)
        if serving != self._is_serving:
            self._is_serving = serving
            await self.parts.services.set_health(serving=serving)

    async def _follow_orders(self) -> None:
        """Carry out what the supervisor orders, until it orders to stop or is gone."""
        parts = self.parts
        drain: asyncio.Task[None] | None = None
        async with asyncio.TaskGroup() as tasks:
            while (order := await self._control.receive()) is not None:
                match order.WhichOneof("kind"):
                    case "placement":
                        parts.membership.offer(placement_from_proto(order.placement))
                    case "collect":
                        await parts.reporter.report(collect=order.collect)
                    case "status":
                        parts.status_query.answered(order.status)
                    case "drain":
                        drain = drain or tasks.create_task(self.drain(order.drain.grace_s))
                    case "propose":
                        await parts.settings_vote.vote(order.propose)
                    case "commit":
                        parts.settings_vote.commit(order.commit)
                    case "away":
                        self._avoid(order.away)
                    case "ask_turns":
                        tasks.create_task(parts.held_turns.answer(order.ask_turns))
                    case "fence":
                        self._extend(order.fence)
                    case "prepare":
                        self._prepare(order.prepare)
                    case "gone":
                        parts.handoff.gone(order.gone.life)
                    case "reborn":
                        parts.handoff.reborn(member_from_proto(order.reborn))
                    case "stop":
                        if drain is not None:
                            # Before it stops to tick and to report: this may take as long as a drain.
                            await parts.listener.stop(max(order.stop.grace_s, STOP_S))
                        break
            if drain is not None:
                drain.cancel()

    def _prepare(self, message: control_pb2.Prepare, *, has_just_started: bool = False) -> None:
        """A change of placement begins."""
        before, after = placement_from_proto(message.before), placement_from_proto(message.after)
        trace = parse_traceparent(message.traceparent)
        self.parts.handoff.prepare(before, after, message.gone, trace, has_just_started=has_just_started)

    def _extend(self, message: control_pb2.Fence) -> None:
        """The lease of the machine was renewed."""
        # Only with a cluster.
        from onelane.lane.fenced_lane import FencedLane

        if isinstance(self.parts.lane, FencedLane):
            self.parts.lane.fence.extend(fence_from_proto(message))

    def _avoid(self, message: control_pb2.Away) -> None:
        """Send nothing to siblings that serve no calls now, and wait for nothing from those whose lanes do not tick."""
        away = dict.fromkeys(message.drained, DRAINED) | dict.fromkeys(message.unresponsive, UNRESPONSIVE)
        give_up = getattr(self.parts.listener, "give_up", None)
        for member in self.parts.lane.avoid(away):
            self.parts.sibling_channels.give_up(member)
            if give_up is not None:
                give_up(member.socket)

    # Drain

    async def drain(self, grace_s: float) -> None:
        """Let clients go elsewhere and calls finish, for at most `grace_s` seconds, then report drained.

        It waits for the calls that siblings have forwarded as well; those that they forward meanwhile are served.
        """
        parts = self.parts
        await parts.services.end_health()
        await parts.listener.drain()
        parts.handoff.end_hops()
        await self._wait_quiet()
        under_way = self._calls_under_way()
        drain_log = DrainLog(
            self._setup.name,
            methods=lambda: (call.method for call in under_way if call.state is not DONE),
            count=lambda: max(parts.lane.own_in_flight, sum(call.state is not DONE for call in under_way)),
        )
        telling = asyncio.create_task(drain_log.tell_regularly(grace_s))
        try:
            async with asyncio.timeout(grace_s):
                await parts.lane.drain(begun=[call for call in under_way if call.state is ARRIVED])
                while under_way := [call for call in under_way if call.state is not DONE]:  # noqa: ASYNC110 - a drain only
                    await asyncio.sleep(QUIET_S)
                await self._wait_quiet()
            drain_log.ended()
        except TimeoutError:
            cut_short = parts.lane.own_in_flight + sum(call.trusted or call.state is ARRIVED for call in under_way)
            described = drain_log.described()
            log.warning("shard.drain_cut_short shard=%s under_way=%d of=%s", self._setup.name, cut_short, described)
        finally:
            telling.cancel()
        await self._control.send(control_pb2.ToSupervisor(drained=control_pb2.Drained()))

    def _calls_under_way(self) -> Sequence[Call]:
        list_calls = getattr(self.parts.listener, "under_way", None)
        return () if list_calls is None else list_calls()

    async def _wait_quiet(self) -> None:
        """Wait until no call has come for `QUIET_S`: gRPC's core may still hold calls that it has accepted."""
        give_up = time.monotonic() + QUIET_LIMIT_S
        received = -1
        while received != self.parts.lane.received and time.monotonic() < give_up:
            received = self.parts.lane.received
            await asyncio.sleep(QUIET_S)

    # Stop

    async def stop(self, *, stops_services: bool = True) -> None:
        """End every part, whatever becomes of the others, and send the final report. stops_services: call the `stop` of
        each service."""
        parts = self.parts
        # Also where no drain came first: the supervisor is gone.
        parts.lane.begin_drain()
        await self._end(partial(parts.listener.stop, STOP_S))
        if parts.access.token_keys is not None:
            await self._end(parts.access.token_keys.aclose)
        if stops_services:
            await self._end(parts.services.stop)
        await self._end_resources()
        await parts.reporter.report(final=True)
        if parts.logs is not None:
            logging.getLogger().removeHandler(parts.logs)

    async def give_up_start(self, *, whole_process: bool) -> None:
        """After a `start` that has failed: stop the services that have started. A process that ends takes the rest
        along; one that goes on is not to keep the threads of each start that failed."""
        parts = self.parts
        await self._end(parts.services.stop)
        if whole_process:
            return
        if parts.access.token_keys is not None:
            await self._end(parts.access.token_keys.aclose)
        await self._end_resources()
        if parts.logs is not None:
            logging.getLogger().removeHandler(parts.logs)

    async def _end_resources(self) -> None:
        parts = self.parts
        for part in (parts.handoff, parts.forwarder, parts.pubsub, parts.sibling_channels, parts.shard):
            await self._end(part.aclose)

    async def _end(self, end_part: Callable[[], Awaitable[object]]) -> None:
        try:
            await end_part()
        except Exception:
            log.exception("shard.part_not_ended shard=%s", self._setup.name)


def _tune_memory() -> None:
    """Exempt the objects of the start, which live as long as the shard, from garbage collection, and collect less
    often: calls make few reference cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    keep_freed_memory()


def _reason(error: Exception) -> str:
    """Why the shard does not start: a fault of the file by its place and text, one line each; an error of the
    services' code by its name, then its traceback."""
    if isinstance(error, BadConfig):
        return "\n".join(f"{error.source}: {fault}" for fault in error.faults)
    if isinstance(error, ServiceRaised) and error.__cause__ is not None:
        return f"{error}\n" + "".join(traceback.format_exception(error.__cause__))
    if isinstance(error, OnelaneError):
        return str(error)
    return f"{plugins.raised('', error)}\n" + "".join(traceback.format_exception(error))


async def _receive_setup(control: Control) -> control_pb2.Setup | None:
    """The supervisor's first message, once the services can be imported; None where the supervisor is gone."""
    first = await control.receive()
    if first is None:
        return None
    setup: control_pb2.Setup = first.setup
    if setup.app_dir and setup.app_dir not in sys.path:
        sys.path.insert(0, setup.app_dir)
    return setup


async def try_out(control: Control, *, whole_process: bool = True) -> None:
    """Build a shard as `run` does, up to where it would open its resources and listen, and report `ready` or `failed`.
    For `onelane check`. whole_process: see `ShardLifecycle.start`."""
    setup = await _receive_setup(control)
    if setup is None:
        return
    try:
        ShardLifecycle(setup, control, (), Environment(opens_resources=False)).load(whole_process=whole_process)
    except Exception as error:
        await control.send(control_pb2.ToSupervisor(failed=control_pb2.Failed(reason=_reason(error))))
    else:
        await control.send(control_pb2.ToSupervisor(ready=control_pb2.Ready(pid=os.getpid())))


async def run(
    control: Control,
    watchdog: Watchdog,
    sockets: Sequence[socket.socket] = (),
    *,
    on_ready: Callable[[], object] = lambda: None,
) -> bool:
    """Run one shard from its setup to its end. False where it could not start.

    watchdog: watches this loop. sockets: the listening sockets that the supervisor holds: shared, own, and for
    siblings; or none. on_ready: called once the shard has started.
    """
    setup = await _receive_setup(control)
    if setup is None:
        return False
    lifecycle: ShardLifecycle | None = None
    try:
        lifecycle = ShardLifecycle(setup, control, sockets)
        await lifecycle.start(whole_process=watchdog.may_exit)
    except Exception as error:
        if lifecycle is not None:
            await lifecycle.give_up_start(whole_process=watchdog.may_exit)
        await control.send(control_pb2.ToSupervisor(failed=control_pb2.Failed(reason=_reason(error))))
        return False
    await lifecycle.tell_health(placement_from_proto(setup.placement))
    if watchdog.may_exit:
        # Else the process is not this shard's alone.
        _tune_memory()
    on_ready()
    await lifecycle.serve(watchdog)
    await lifecycle.stop()
    return True
