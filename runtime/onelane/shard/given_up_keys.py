"""Keys that have left this life in the middle of a turn, which holds them here until it ends.

Promises: a key leaves with its entries as they are when its turn is given up. What the turn changes of them later
counts nowhere: neither at the new owner, nor here, where the key has come back before the turn has ended.
Of durable state nothing of the turn is kept, and what it publishes, or sends to other services, does not leave.
"""

from onelane.lane.lane import Lane
from onelane.state.entries import KeyedEntry
from onelane.state.keyed import KeyedDicts


class GivenUpKeys:
    """See the module. Owned by one lane. In every method `key` is canonical text."""

    def __init__(self, lane: Lane, keyed: KeyedDicts) -> None:
        self._lane = lane
        self._keyed = keyed
        self._came_back: dict[str, list[KeyedEntry] | None] = {}
        """Key whose turn goes on → the entries with which it has come back; None where it has not, or had none."""

    def has(self, key: str) -> bool:
        """Whether the turn of a key was given up, and goes on."""
        return key in self._came_back

    def add(self, key: str) -> None:
        """Give up the turn of a key that leaves, also where it was given up before, and the key has come back since."""
        self._keyed.set_aside(key, self._came_back.get(key))
        self._came_back[key] = None
        if self._lane.kept is not None:
            self._lane.kept.give_up(key)

    def lose(self, name: str, key: str) -> None:
        """Count and log an entry of a keyed dict that the turn has written since."""
        text = f"keyed {name!r}, key {key!r}: written by a turn that had been given up as the key left"
        self._keyed.lose("given_up", text)

    def arrived(self, key: str, entries: list[KeyedEntry]) -> None:
        """The key has come back with these entries, which are in the dicts now."""
        self._came_back[key] = entries

    def end(self, key: str) -> list[KeyedEntry] | None:
        """The turn has ended: drop what it has left in the dicts. Returns the entries to put in their place."""
        for name in self._keyed.clear(key):
            self.lose(name, key)
        if self._lane.kept is not None:
            self._lane.kept.given_up_ended(key)
        return self._came_back.pop(key)
