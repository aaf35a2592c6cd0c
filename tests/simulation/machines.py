"""Machines with lanes and keys, and one of them that comes, goes, or fails."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from onelane.core.placement import POINTS, Member, Placement

from tests.simulation.arcs import Arcs
from tests.simulation.change import ChangeOutcome, SimulatedChange, machine_of


@dataclass(frozen=True)
class Size:
    machines: int
    lanes: int
    """Of each machine."""
    keys: int
    points: int = POINTS
    """Of each lane."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    size: Size
    moved: int
    """Keys."""
    skew_before: float
    """How much more keys the lane with most has than the mean."""
    skew_after: float
    outcome: ChangeOutcome


def placement(size: Size, machines: int, epoch: int) -> Placement:
    members = [
        Member(f"app-{machine}-{lane}", f"10.0.{machine // 250}.{machine % 250 + 1}:{50151 + 100 * lane}", "", life)
        for life, (machine, lane) in enumerate(((m, n) for m in range(machines) for n in range(size.lanes)), 1)
    ]
    return Placement(epoch, tuple(members), size.points)


def rows(size: Size, seed: int) -> Iterator[Row]:
    """The machine that comes, goes or fails is the last one."""
    fewer, usual, more = placements = [placement(size, size.machines + n, 2 + n) for n in (-1, 0, 1)]
    arcs = Arcs(placements)
    keys_of_arc, moving_keys = arcs.spread(size.keys)
    counts = {p.epoch: arcs.counts(p, keys_of_arc) for p in placements}
    moving: dict[int, dict[int, list[str]]] = {p.epoch: defaultdict(list) for p in (fewer, more)}
    for key, arc in moving_keys:
        owner = arcs.owners[usual.epoch][arc]
        for other in (fewer, more):
            if arcs.owners[other.epoch][arc] != owner:
                moving[other.epoch][owner].append(key)
    last = [m.life for m in usual.members if machine_of(m) == machine_of(usual.members[-1])]
    lost = dict.fromkeys(last, ())
    for what, after, dead in (("comes", more, ()), ("goes", fewer, ()), ("fails", fewer, last)):
        after = Placement(usual.epoch + 1, after.members, after.points)
        key_moves: Mapping[int, Sequence[str]] = moving[more.epoch if what == "comes" else fewer.epoch]
        change = SimulatedChange(
            usual,
            after,
            leaving=lost if dead else key_moves,
            key_counts=counts[usual.epoch],
            seed=seed,
            dead=dead,
        )
        outcome = change.run()
        moved = sum(map(len, key_moves.values()))
        epoch = more.epoch if what == "comes" else fewer.epoch
        yield Row(what, size, moved, skew(counts[usual.epoch]), skew(counts[epoch]), outcome)


def skew(counts: Counter[int]) -> float:
    return max(counts.values()) * len(counts) / counts.total()
