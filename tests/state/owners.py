"""The keyed dicts of one life of a shard, with the dicts that most tests here use."""

from dataclasses import dataclass, field

from onelane.state.keyed import KeyedDicts
from onelane.telemetry.stats import Stats


@dataclass
class Cart:
    """A kind that moves."""

    items: dict[str, int] = field(default_factory=dict)
    note: str = ""


class Owner:
    """One life, which has declared two dicts that move."""

    def __init__(self) -> None:
        self.stats = Stats()
        self.dicts = KeyedDicts("echo-0", self.stats)
        self.carts = self.dicts.declare("carts", Cart)
        self.totals = self.dicts.declare("totals", int)

    def lost(self) -> dict[str, float]:
        """`onelane.reason` → entries that did not follow their key, since the last look."""
        points = [point for point in self.stats.take() if point.instrument.name == "onelane.state.lost"]
        return {str(dict(point.attributes)["onelane.reason"]): point.value for point in points}  # type: ignore[misc]


def move(key: str, old: Owner, new: Owner) -> None:
    """What a hand-over does with a key (canonical text)."""
    old.dicts.leaves(key)
    new.dicts.install(key, old.dicts.entries_of(key))
    new.dicts.arrived(key)
    old.dicts.forget(key)
