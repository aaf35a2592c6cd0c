"""What the lives of one machine are told of the placement of their app, by its entry in the store. Pure.

    LAUNCHED ──a life that joins──▶ FOLLOWS, and owns nothing until an entry names it
        └─────the next life of a shard: once an entry names it──▶ FOLLOWS

A process is launched, then its life is put into the record of its machine, and then the entry is read by which it
begins. So a life that has the place of a dead one serves nothing before the coordinator knows of it: another machine
may have decided a change meanwhile in which the dead one has a part.

Promises: the messages for one life come in the order of the entry, and each once, however many entries are skipped.
"""

from dataclasses import dataclass, replace

from onelane.cluster.placements import AppEntry
from onelane.core.placement import Placement
from onelane.core.placement_change import Gone, Prepare, Reborn

Message = Placement | Prepare | Gone | Reborn


@dataclass(frozen=True, slots=True)
class Known:
    """How much of the entries a life has been told."""

    life: int
    epoch: int = 0
    """Of the last placement; 0: of none."""
    is_named: bool = False
    """That placement names the life: keys are its own. One that joins may become so in the same epoch, where the life
    dies that it was to take over from."""
    sockets: frozenset[str] | None = None
    """Where the members of that placement are reached: in the same epoch one may have its next life at another place.
    None: of no placement."""
    change: int = 0
    """The epoch to which the change leads that `orders` is about."""
    orders: int = 0
    """The number of orders of that change."""

    def news(self, entry: AppEntry | None) -> tuple["Known", list[Message]]:
        """What the life is to be told now, and what it knows then."""
        if entry is None:
            return self, []
        known, messages = self, list[Message]()
        placement = entry.placement
        is_named, sockets = _names(placement, self.life), _sockets(placement)
        has_moved = placement.epoch == self.epoch and self.sockets not in (None, sockets)
        if (placement.epoch, is_named) > (self.epoch, self.is_named) or has_moved:
            known = replace(known, epoch=placement.epoch, is_named=is_named, sockets=sockets)
            messages = [placement]
        if entry.following is None:
            return known, messages
        orders = entry.orders_for(self.life)
        first = self.orders if self.change == entry.following.epoch else 0
        known = replace(known, change=entry.following.epoch, orders=len(orders))
        return known, [*messages, *orders[first:]]


@dataclass(frozen=True, slots=True)
class Beginning:
    """By what a process begins that was launched."""

    known: Known
    placement: Placement | None
    """None: there is none yet, so that all calls with a key wait."""
    prepare: Prepare | None = None
    """The change under way, where it has a part in that."""


def beginning(entry: AppEntry | None, life: int, *, follows: bool) -> Beginning | None:
    """None where the process has to wait for another entry. entry: read after the record of the machine names the life.

    follows: it is the next life of a shard that keys may belong to, or a stand-in for one.
    """
    if entry is None:
        return None if follows else Beginning(Known(life), None)
    placement, orders = entry.placement, entry.orders_for(life)
    if orders:
        prepare = next(order for order in orders if isinstance(order, Prepare))
        assert entry.following is not None
        known = Known(life, placement.epoch, _names(placement, life), _sockets(placement), entry.following.epoch, 1)
        return Beginning(known, placement, prepare)
    is_named = _names(placement, life)
    if follows and not is_named:
        return None
    return Beginning(Known(life, placement.epoch, is_named, _sockets(placement)), placement)


def _names(placement: Placement, life: int) -> bool:
    return any(member.life == life for member in placement.members)


def _sockets(placement: Placement) -> frozenset[str]:
    return frozenset(member.socket for member in placement.members)
