"""Carries out one change of placement, from its Prepare to its end: tells lives, and hears of them.

Promises: the messages to one life are sent in order; a life that hangs (`late_lives`) is killed, and so ends the change
for its own part. A life that has died and does not start again holds the change up for as long as it does not: what
others have to hand over to it stays with them.
"""

import logging
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import anyio

from onelane.cluster.control import member_to_proto, placement_to_proto
from onelane.core.placement import Member, Placement
from onelane.core.placement_change import Gone, Order, Over, PlacementChange, Prepare, Reborn, Tell
from onelane.supervisor.change_trace import ChangeTrace
from onelane.supervisor.late_lives import BETWEEN_LOOKS_S, LateLives
from onelane.supervisor.supervised_shard import SupervisedShard
from onelane.v1 import control_pb2

log = logging.getLogger("onelane.supervisor")


class RunningChange:
    """See the module. All methods but `run` are events, which its app reports."""

    def __init__(
        self,
        before: Placement,
        after: Placement,
        shards: Sequence[SupervisedShard],
        trace: ChangeTrace,
        *,
        limit_s: float,
    ) -> None:
        """shards: all that have a life in `before` or `after`; each that is only in `after` has been ready.
        limit_s: of `LateLives`."""
        self.progress: dict[int, control_pb2.HandoffProgress] = {}
        """Life → how far it is."""
        self.began_at = time.monotonic()
        self._change = PlacementChange(before, after)
        self._shards = shards
        self._trace = trace
        self._late = LateLives(limit_s)
        self._outbox: deque[Tell] = deque()
        self._over: Over | None = None
        self._wakeup = anyio.Event()

    @property
    def before(self) -> Placement:
        return self._change.before

    @property
    def after(self) -> Placement:
        return self._change.after

    @property
    def waits_for(self) -> frozenset[int]:
        """The lives that have not departed or arrived yet."""
        return self._change.waits_for()

    @property
    def names(self) -> Mapping[int, str]:
        """Of the lives."""
        members = (*self.before.members, *(shard.member for shard in self._shards))
        return {member.life: member.name for member in members}

    @property
    def is_over(self) -> bool:
        """Every key is where it belongs; not all lives may have been told yet."""
        return self._over is not None

    # Events

    def launched(self, dead_life: int, member: Member) -> control_pb2.Prepare | None:
        """A process has been launched after one that has died; the change for its setup, where it has a part in it."""
        orders = self._change.reborn(dead_life, member)
        self._take(order for order in orders if not _is_for(member, order))
        prepares = [order.message for order in orders if isinstance(order, Tell) and _is_for(member, order)]
        return next((self._prepare_to_proto(prepare) for prepare in prepares if isinstance(prepare, Prepare)), None)

    def died(self, life: int) -> None:
        """The process of a life has ended."""
        if life in self.waits_for:
            self._trace.add_event("life_died", self._name(life), error="life_died")
        self.progress.pop(life, None)
        self._take(self._change.died(life))

    def departed(self, life: int, epoch: int) -> None:
        if epoch == self.after.epoch:
            self._trace.add_event("departed", self._name(life))
            self._take(self._change.departed(life))

    def arrived(self, life: int, epoch: int) -> None:
        if epoch == self.after.epoch:
            self._trace.add_event("arrived", self._name(life))
            self._take(self._change.arrived(life))

    def progressed(self, life: int, progress: control_pb2.HandoffProgress) -> None:
        if progress.epoch == self.after.epoch:
            self.progress[life] = progress
            self._late.progressed(life, progress)

    # Carrying it out

    async def run(self) -> Placement:
        """Tell every life, until the change is over; returns the new placement, with the lives of now."""
        self._trace.add_event("begun")
        for shard in self._shards:
            if not shard.is_alive:
                self._take(self._change.died(shard.member.life))
        for shard in self._shards:
            self._take(self._change.joined(shard.member.life))
        self._take(self._change.begin())
        look_at = time.monotonic() + BETWEEN_LOOKS_S
        while True:
            while self._outbox:
                await self._tell(self._outbox.popleft())
            if self._over is not None:
                # A life may have followed another one since.
                return self.after
            with anyio.move_on_after(look_at - time.monotonic()):
                await self._wakeup.wait()
            if time.monotonic() >= look_at:
                self._end_late_lives()
                look_at = time.monotonic() + BETWEEN_LOOKS_S

    def _take(self, orders: Iterable[Order]) -> None:
        for order in orders:
            if isinstance(order, Over):
                self._over = order
            else:
                self._outbox.append(order)
        wakeup, self._wakeup = self._wakeup, anyio.Event()
        wakeup.set()

    async def _tell(self, order: Tell) -> None:
        for shard in self._shards:
            if shard.member.life == order.life and shard.incarnation is not None:
                await shard.incarnation.deliver(self._message(order.message))

    def _message(self, message: Prepare | Gone | Reborn) -> control_pb2.ToShard:
        match message:
            case Prepare():
                return control_pb2.ToShard(prepare=self._prepare_to_proto(message))
            case Gone(life):
                return control_pb2.ToShard(gone=control_pb2.ShardMember(life=life))
            case Reborn(member):
                return control_pb2.ToShard(reborn=member_to_proto(member))

    def _end_late_lives(self) -> None:
        """Kill the lives that hang."""
        lives = {shard.member.life: shard for shard in self._shards if shard.is_up}
        for life in self._late.tick(self.after.epoch, lives):
            name, incarnation = lives[life].member.name, lives[life].incarnation
            assert incarnation is not None
            self._trace.add_event("life_killed", name, error="life_killed")
            log.error("change.life_killed shard=%s life=%d %s", name, life, self._late.reason)
            incarnation.running.kill()

    def _prepare_to_proto(self, prepare: Prepare) -> control_pb2.Prepare:
        return control_pb2.Prepare(
            before=placement_to_proto(prepare.before),
            after=placement_to_proto(prepare.after),
            gone=sorted(prepare.dead),
            traceparent=self._trace.traceparent,
        )

    def _name(self, life: int) -> str:
        return self.names.get(life, "")


def _is_for(member: Member, order: Order) -> bool:
    return isinstance(order, Tell) and order.life == member.life
