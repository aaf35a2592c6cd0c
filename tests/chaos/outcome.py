"""What a run has shown, as text."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tests.chaos.clients import History
from tests.chaos.planners import Planners
from tests.chaos.schedule import Record
from tests.chaos.text import quantiles, words
from tests.chaos.watchers import Watchers
from tests.history.operations import Operation


@dataclass(frozen=True)
class Outcome:
    """Of a run, whose history is linearizable and whose reminders and streams are as they must be."""

    app: str
    seed: int
    history: History
    record: Record
    watchers: Watchers
    planners: Planners | None
    """Of an app with durable state."""

    @property
    def calls(self) -> int:
        return len(self.history.operations) + len(self.history.failures)

    @property
    def faults(self) -> list[str]:
        """Of changes that were refused, or given up."""
        return [f"{change.what}: {change.fault}" for change in self.record.changes if change.fault]

    def usual(self) -> list[float]:
        """Seconds of each call outside of changes, sorted."""
        return sorted(_seconds(o) for o in self._answered() if not any(self._changes_of(o)))

    def longest(self) -> list[float]:
        """Seconds of the longest call of each key in each change, sorted: what its clients see as a pause."""
        longest: dict[tuple[int, str], float] = {}
        for operation in self._answered():
            for number in self._changes_of(operation):
                place = number, operation.key
                longest[place] = max(longest.get(place, 0.0), _seconds(operation))
        return sorted(longest.values())

    def _answered(self) -> Iterable[Operation]:
        return (operation for operation in self.history.operations if operation.result is not None)

    def _changes_of(self, operation: Operation) -> Iterable[int]:
        """The changes that it overlaps."""
        for number, change in enumerate(self.record.changes):
            if operation.answered_at >= change.began_at and operation.called_at <= change.ended_at:
                yield number

    def lines(self) -> list[str]:
        """For people."""
        failures = Counter(f"{f.client} {f.code} {f.details[-80:]}" for f in self.history.failures)
        changes = Counter(change.what.partition("?")[0][1:] for change in self.record.changes)
        return [
            f"{self.app}, seed {self.seed}: {self.calls} calls, {len(self.history.failures)} failed, "
            f"{self.history.repeated.total()} repeated by id; {words(changes)}; {words(self.record.harm)}",
            f"  a call, in ms: {quantiles(self.usual())} without a change; the longest of each key in each change: "
            f"{quantiles(self.longest())}",
            *self.watchers.lines(),
            *(self.planners.lines() if self.planners else ()),
            *(f"  {count} times {failure}" for failure, count in failures.most_common(6)),
            *(f"  {count} times repeated: {why}" for why, count in self.history.repeated.most_common(3)),
            *(f"  not carried out: {fault}" for fault in self.faults[:4]),
        ]


def _seconds(operation: Operation) -> float:
    return operation.answered_at - operation.called_at
