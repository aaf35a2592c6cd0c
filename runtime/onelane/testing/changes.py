"""Changes of placement in a test cluster: what the supervisor does with processes, done with shards of one process."""

import asyncio
from collections.abc import Iterable
from typing import Protocol

from onelane.core.placement import Member, Placement
from onelane.core.placement_change import Gone, Order, Over, PlacementChange, Prepare, Reborn
from onelane.shard.handoff import HandoffCarrier


class ChangingShard(Protocol):
    """A shard of the cluster, as changes see it."""

    member: Member
    """Its life now."""

    @property
    def carrier(self) -> HandoffCarrier:
        """Its part in a change."""

    def place(self, placement: Placement) -> None:
        """Follow a placement."""


class ClusterChanges:
    """The changes of one app, one at a time. Owned by the cluster."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        """By which keys are served once no change is under way."""
        self._change: PlacementChange | None = None
        self._shards: dict[int, ChangingShard] = {}
        """Life → its shard."""
        self._starting: dict[int, list[Prepare | Gone | Reborn]] = {}
        """Life that follows a crash, and starts → what it is told once it has started."""
        self._is_over = asyncio.Event()
        self._lock = asyncio.Lock()

    def add(self, shard: ChangingShard) -> None:
        """A shard has started."""
        self._shards[shard.member.life] = shard
        if (messages := self._starting.pop(shard.member.life, None)) is not None:
            shard.place(self.placement)
            for message in messages:
                _tell(shard.carrier, message)

    async def run(self, after: Placement) -> None:
        """Change to a placement, all of whose lives have started; returns when every key is where it belongs."""
        async with self._lock:
            self._is_over.clear()
            change = self._change = PlacementChange(self.placement, after)
            for member in (*self.placement.members, *after.members):
                if member.life not in self._shards and member.life not in self._starting:
                    self._carry_out(change.died(member.life))
            for member in after.members:
                self._carry_out(change.joined(member.life))
            self._carry_out(change.begin())
            await self._is_over.wait()

    def departed(self, life: int) -> None:
        if self._change is not None:
            self._carry_out(self._change.departed(life))

    def arrived(self, life: int) -> None:
        if self._change is not None:
            self._carry_out(self._change.arrived(life))

    def died(self, life: int) -> None:
        self._shards.pop(life, None)
        self._starting.pop(life, None)
        if self._change is not None:
            self._carry_out(self._change.died(life))

    def reborn(self, dead_life: int, shard: ChangingShard) -> Prepare | None:
        """The next life of a shard that has died starts; `add` follows. Returns the change that it starts in the middle
        of."""
        self._starting[shard.member.life] = []
        if self._change is None:
            members = tuple(shard.member if m.life == dead_life else m for m in self.placement.members)
            self.placement = Placement(self.placement.epoch, members, self.placement.points, self.placement.pins)
            return None
        orders = self._change.reborn(dead_life, shard.member)
        self._carry_out(order for order in orders if not _is_prepare(order))
        return next((order.message for order in orders if _is_prepare(order)), None)  # type: ignore[union-attr,return-value]

    def _carry_out(self, orders: Iterable[Order]) -> None:
        for order in orders:
            if isinstance(order, Over):
                self._end(order.placement)
            elif order.life in self._starting:
                self._starting[order.life].append(order.message)
            elif (shard := self._shards.get(order.life)) is not None:
                _tell(shard.carrier, order.message)

    def _end(self, placement: Placement) -> None:
        self.placement, self._change = placement, None
        for shard in self._shards.values():
            shard.place(placement)
        self._is_over.set()


def _is_prepare(order: Order) -> bool:
    return not isinstance(order, Over) and isinstance(order.message, Prepare)


def _tell(carrier: HandoffCarrier, message: Prepare | Gone | Reborn) -> None:
    match message:
        case Prepare(before, after, dead):
            carrier.prepare(before, after, dead)
        case Gone(life):
            carrier.gone(life)
        case Reborn(member):
            carrier.reborn(member)
