"""What an operator wants of an app: how many shards, which of them drained or replaced, and which keys pinned. Pure.

Each command alters the target. A function here returns the next target, or raises `NotChanged` with one clear sentence.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from onelane.errors import OnelaneError


class NotChanged(OnelaneError):
    """A change that was asked for is not possible, or was given up; nothing has changed."""


@dataclass(frozen=True, slots=True)
class AppTarget:
    """See the module. A shard is named by its index."""

    app: str
    shards: int
    pins: Mapping[str, int] = field(default_factory=dict)
    """Canonical key → the shard that owns it. A pin to a shard that is drained, or that the app does not have, waits
    until it is in the placement."""
    drained: frozenset[int] = frozenset()
    """Its keys are with the others."""
    replaced: frozenset[int] = frozenset()
    """Its next life takes its keys over. Once: the target that has been reached has none."""

    @property
    def placed(self) -> tuple[int, ...]:
        """The shards that own keys."""
        return tuple(index for index in range(self.shards) if index not in self.drained)

    @property
    def placed_pins(self) -> dict[str, int]:
        """The pins that hold now."""
        return {key: index for key, index in self.pins.items() if index in self.placed}


Alteration = Callable[[AppTarget], AppTarget]


def scaled(shards: int) -> Alteration:
    """The app shall have so many shards."""

    def alter(target: AppTarget) -> AppTarget:
        if shards < 1:
            raise NotChanged(f"{target.app} cannot have {shards} shards: at least 1 is needed")
        drained = frozenset(index for index in target.drained if index < shards)
        if len(drained) == shards:
            raise NotChanged(f"{target.app} cannot have {shards} shards: all of them are drained")
        replaced = frozenset(index for index in target.replaced if index < shards)
        return replace(target, shards=shards, drained=drained, replaced=replaced)

    return alter


def pinned(key: str, index: int) -> Alteration:
    """The shard of this index shall own a key."""

    def alter(target: AppTarget) -> AppTarget:
        if not 0 <= index < target.shards:
            raise NotChanged(f"{target.app} has no shard {index}: it has the shards 0 to {target.shards - 1}")
        return replace(target, pins={**target.pins, key: index})

    return alter


def unpinned(key: str) -> Alteration:
    """The ring alone shall say which shard owns a key."""

    def alter(target: AppTarget) -> AppTarget:
        if key not in target.pins:
            raise NotChanged(f"{target.app} has no pin for the key {key!r}")
        return replace(target, pins={other: index for other, index in target.pins.items() if other != key})

    return alter


def drained(index: int) -> Alteration:
    """The keys of a shard shall be with the others."""

    def alter(target: AppTarget) -> AppTarget:
        drained = target.drained | {index}
        if len(drained) >= target.shards:
            raise NotChanged(f"no other shard of {target.app} could take over the keys of {target.app}-{index}")
        return replace(target, drained=drained)

    return alter


def replaced(index: int) -> Alteration:
    """The next life of a shard shall take over its keys; also where it is drained."""

    def alter(target: AppTarget) -> AppTarget:
        if index >= target.shards:
            raise NotChanged(f"{target.app} has no shard {index} any more")
        return replace(target, replaced=target.replaced | {index}, drained=target.drained - {index})

    return alter


def returned(index: int) -> Alteration:
    """A drained shard, whose process has ended by itself and was started again, shall own keys again."""

    def alter(target: AppTarget) -> AppTarget:
        return replace(target, drained=target.drained - {index})

    return alter
