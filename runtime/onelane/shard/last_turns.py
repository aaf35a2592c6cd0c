"""What follows the last turn of a key that leaves, before its state does: the service is told, and its durable state is
on disk alone."""

from collections.abc import Sequence

from onelane.errors import NotKept, OnelaneError, UnwritableValue
from onelane.lane.lane import Lane
from onelane.state.journal import Journal
from onelane.state.keyed import KeyedDicts


class LastTurns:
    """See the module. Owned by one lane."""

    def __init__(self, lane: Lane, keyed: KeyedDicts) -> None:
        self._lane = lane
        self._keyed = keyed
        self._told: set[str] = set()
        """Keys that the service has been told of, in this change."""

    def clear(self) -> None:
        """The change is over."""
        self._told.clear()

    async def release(self, keys: Sequence[str]) -> None:
        """The last turns of these keys are over: tell the service, and have their durable state on disk alone."""
        gate = self._lane.kept
        if gate is None and not self._keyed.tells_leaving:
            return
        for key in keys:
            if self.tell(key) and gate is not None and key in gate.journal.residents:
                self._keep_changes(gate.journal, key)
        if gate is not None:
            await gate.journal.release(keys)

    def tell(self, key: str) -> bool:
        """Tell the service that a key leaves; False where it has been told in this change."""
        if key in self._told:
            return False
        self._told.add(key)
        self._keyed.leaves(key)
        return True

    def _keep_changes(self, journal: Journal, key: str) -> None:
        """Write what the service has changed of a key as it was told that it leaves."""
        try:
            journal.end_turn(key, _ignore)
        except UnwritableValue as error:
            self._keyed.lose("unwritable", error)
        except NotKept:
            # What is on disk counts.
            pass


def _ignore(_: OnelaneError | None) -> None: ...
