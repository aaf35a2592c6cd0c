"""Keeps the shards of one app alive: starts them, restarts those that die, drains them, restarts them one by one."""

import itertools
import logging
import math
import time
from collections.abc import Callable
from functools import cached_property
from random import Random
from typing import Any

import anyio

from onelane.config import App
from onelane.core.backoff import backoff_s
from onelane.core.placement import Placement
from onelane.errors import OnelaneError
from onelane.supervisor.app_sockets import remove_paths
from onelane.supervisor.change_trace import ChangeTraces
from onelane.supervisor.changes import Changes
from onelane.supervisor.lane_watch import LaneWatch
from onelane.supervisor.own_placing import OwnPlacing
from onelane.supervisor.placing import Placing, Start
from onelane.supervisor.restarts import Restarts
from onelane.supervisor.service_settings import ServiceSettings
from onelane.supervisor.setup_message import setup_message
from onelane.supervisor.shard_state import NOT_YET_READY, REPORTING, ShardEvent, ShardState, is_possible
from onelane.supervisor.shared_resources import SharedResources
from onelane.supervisor.supervised_shard import Incarnation, SupervisedShard
from onelane.supervisor.turn_questions import TurnQuestions
from onelane.telemetry.codec import stall_from_proto
from onelane.telemetry.collector.collector import RESTARTS
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


class ShardFailed(OnelaneError):
    """A shard could not start; the app stops. Carries the shard's own error text."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"shard {name} failed to start: {reason.rstrip()}")


class AppSupervisor:
    """The shards of one app. Owned by the supervisor of all apps."""

    def __init__(self, name: str, settings: App, placement: Placement, shared: SharedResources) -> None:
        self.name = name
        self.settings = settings
        self.placement = placement
        self._shared = shared
        self.shards = [SupervisedShard(member, index) for index, member in enumerate(placement.members)]
        self.beside: list[SupervisedShard] = []
        """See `changes.ChangingApp`."""
        self.stopping = anyio.Event()
        self.placing: Placing = OwnPlacing(self) if shared.place is None else shared.place(self)
        self.changes = Changes(self)
        self.turns = TurnQuestions(self)
        self.lane_watch = LaneWatch(self.shards, self.beside, settings, is_placed=self.changes.is_placed)
        self.service_settings = ServiceSettings(self)
        self.restarts = Restarts(self)
        self._lives = itertools.count(1)
        self._rng = Random()

    @property
    def all_shards(self) -> list[SupervisedShard]:
        """With those that join or leave the placement."""
        return [*self.shards, *self.beside]

    @property
    def is_stopping(self) -> bool:
        return self.stopping.is_set()

    @cached_property
    def change_traces(self) -> ChangeTraces:
        telemetry = self._shared.telemetry
        records_all = telemetry.traces and self.settings.tail is not None
        return ChangeTraces(self.name, self._shared.collector, sampler=telemetry.span_sampler, records_all=records_all)

    # One shard's incarnations

    async def supervise(self, shard: SupervisedShard) -> None:
        """Run one shard, and again each time it ends, until the app stops.

        Raises:
            ShardFailed: its first start failed.
        """
        failures = 0
        while not self.stopping.is_set() and not shard.is_leaving:
            began = time.monotonic()
            how = await self._run_guarded(shard)
            await self._note_end(shard)
            if self.stopping.is_set() or shard.is_leaving:
                break
            if _ended_with_its_lease(shard):
                continue
            shard.follow(ShardEvent.ENDED)
            if shard.state is ShardState.STOPPED:
                raise ShardFailed(shard.member.name, how)
            if shard.incarnation is None or not shard.incarnation.is_ready:
                # A restart waits for this start, and tells that it failed.
                shard.ready.set()
            if shard.state is ShardState.RECOVERING:
                failures = 0 if time.monotonic() - began > STEADY_S else failures + 1
                await self._back_off(shard, how, failures)
        shard.follow(ShardEvent.ENDED if shard.is_leaving else ShardEvent.APP_STOPPED)
        shard.pid = 0
        # It will not be ready any more: wake the tasks that wait for it.
        shard.ready.set()
        self.forget(shard)

    def begin_beside(self, shard: SupervisedShard) -> None:
        """Start a shard that joins the placement, or replaces another one."""
        self.beside.append(shard)
        self._shared.collector.totals.bring_back(self.source(shard))
        self._shared.start_shard(self._supervise_beside, shard)

    async def _supervise_beside(self, shard: SupervisedShard) -> None:
        """As `supervise`; but a first start that fails is a fault of the change alone."""
        try:
            await self.supervise(shard)
        except ShardFailed as error:
            shard.fault = str(error)
            shard.ready.set()
            self.forget(shard)

    def forget(self, shard: SupervisedShard) -> None:
        """A shard has ended for good. Of one that is left out, nothing stays but its counts, in the sums."""
        shard.ended.set()
        if shard not in self.beside:
            return
        self.beside.remove(shard)
        remove_paths(shard.member)
        if not any(other.index == shard.index for other in self.all_shards):
            self._shared.collector.totals.retire(self.source(shard))
        self.changes.ended(shard)

    async def _note_end(self, shard: SupervisedShard) -> None:
        """The process of a life has ended, by proof: the others need not wait for it."""
        if shard.incarnation is not None:
            with anyio.move_on_after(SHARD_END_S):
                await shard.incarnation.running.wait()
        self._follow_change(shard)
        self.placing.died(shard)

    def _follow_change(self, shard: SupervisedShard) -> None:
        """No process follows that of a shard which the change under way leaves out: it would know of no change."""
        if self.changes.will_leave(shard) and is_possible(shard.state, ShardEvent.LEAVE_ASKED):
            shard.follow(ShardEvent.LEAVE_ASKED)

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
        running = await self._shared.launcher.launch((*shard.sockets, *self.placing.more_sockets(shard)))
        before = shard.member.life
        incarnation = shard.begin(running, self.placing.number(shard))
        limit_s = START_PARTS * self.settings.start_s
        try:
            if (start := await self._start_of(shard, incarnation, before)) is None:
                incarnation.running.kill()
                return await incarnation.running.wait()
            setup = self.setup_of(shard, start)
            with anyio.move_on_after(limit_s) as incarnation.start:
                await incarnation.running.control.send(control_pb2.ToShard(setup=setup))
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

    async def _start_of(self, shard: SupervisedShard, incarnation: Incarnation, before: int) -> Start | None:
        """Wait until a process may start, which needs a lease in a cluster; None where the process or the app ends
        before, or the shard was left out while the process was launched: there was none yet that could have been ended.

        before: the life before it.
        """
        self._follow_change(shard)
        if self.stopping.is_set() or shard.is_leaving:
            return None
        lives = self._shared.lives
        if lives is not None and not await lives.may_start(incarnation.running, self.stopping):
            return None
        return await self.placing.begin(shard, incarnation, before)

    def next_life(self) -> int:
        return next(self._lives)

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
                    self.start_soon(self.restarts.restart_in_turn, shard, incarnation)
                case "departed" | "arrived" | "progress":
                    self.placing.reported(shard, message)
                case "turns":
                    self.turns.answered(message.turns)
        control.close()

    async def _note_ready(self, shard: SupervisedShard, pid: int) -> None:
        shard.follow(ShardEvent.BECAME_READY)
        shard.pid = pid
        shard.ready.set()
        await shard.send_deferred()
        self.placing.became_ready(shard)
        if self.changes.is_left_out(shard):
            self.start_soon(self.restarts.bring_back, shard)
        await self.lane_watch.inform(shard)
        if self._shared.lives is not None:
            await self._shared.lives.inform(shard)
        await self.service_settings.bring_up_to_date(shard)

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
            await self.stopping.wait()

    def source(self, shard: SupervisedShard) -> Attributes:
        """The attributes that every series of a shard has."""
        return (("onelane.app", self.name), ("onelane.shard", shard.member.name))

    def setup_of(self, shard: SupervisedShard, start: Start) -> control_pb2.Setup:
        """The first message to a process of this shard, with all that it needs to start."""
        shard.settings.generation = self.service_settings.generation
        return setup_message(self.name, self.settings, shard, start, self._shared)

    # Drain, restart, end

    async def drain(self) -> None:
        """Stop the app: let calls under way finish, at most `drain_s`, then end every shard."""
        self.stopping.set()
        for shard in self.all_shards:
            shard.settings.wake()
        await self.placing.leave()
        # Some drain already; a second order changes nothing.
        draining = [shard for shard in self.all_shards if shard.state in REPORTING - {ShardState.DRAINED}]
        incarnations = [shard.incarnation for shard in draining if shard.incarnation is not None]
        for shard in draining:
            if shard.state is ShardState.READY:
                shard.follow(ShardEvent.DRAIN_ASKED)
        for incarnation in incarnations:
            await self._send_drain(incarnation)
        with anyio.move_on_after(self.settings.drain_s + DRAIN_MARGIN_S):
            for incarnation in incarnations:
                await incarnation.drained.wait()
        # No shard will accept from these: refuse new connections at once instead of queueing them.
        self.close_sockets()
        # Not before all have drained: a shard that drains may still forward calls to the others.
        async with anyio.create_task_group() as tasks:
            for shard in self.all_shards:
                tasks.start_soon(self.end, shard)

    def close_sockets(self) -> None:
        for shard in self.all_shards:
            for sock in shard.sockets:
                sock.close()
            if shard.link is not None:
                shard.link.close()

    async def retire(self, shard: SupervisedShard) -> None:
        """After LEAVE_ASKED: let the shard's calls finish, and end its process; none follows."""
        incarnation = shard.incarnation
        if incarnation is None or not shard.is_alive:
            return
        if not incarnation.is_ready:
            # It reads no order yet, and has no call.
            incarnation.running.kill()
            return
        await self.let_finish(incarnation)
        if not self.stopping.is_set():
            await self.end(shard, self.settings.drain_s)

    def start_soon(self, work: Callable[..., Any], *arguments: Any) -> None:
        self._shared.start_soon(work, *arguments)

    def kill(self) -> None:
        """End every shard at once."""
        self.stopping.set()
        for shard in self.all_shards:
            if shard.incarnation is not None:
                shard.incarnation.running.kill()

    async def let_finish(self, incarnation: Incarnation) -> None:
        """Order a drain, and wait until the calls have finished, or their time is over."""
        await self._send_drain(incarnation)
        with anyio.move_on_after(self.settings.drain_s + DRAIN_MARGIN_S):
            await incarnation.drained.wait()

    async def tell_away(self) -> None:
        await self.lane_watch.tell()

    async def _send_drain(self, incarnation: Incarnation) -> None:
        await incarnation.send(control_pb2.ToShard(drain=control_pb2.Drain(grace_s=self.settings.drain_s)))

    async def end(self, shard: SupervisedShard, grace_s: float = 0.0) -> None:
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


def _ended_with_its_lease(shard: SupervisedShard) -> bool:
    """Whether the machine had lost its lease: no crash, so the next process is launched at once."""
    if shard.incarnation is None or not shard.incarnation.has_lost_its_lease:
        return False
    if shard.state is not ShardState.STARTING:
        shard.follow(ShardEvent.ENDED)
    return True
