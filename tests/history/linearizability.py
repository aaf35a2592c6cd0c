"""Whether a history is linearizable: each operation has happened at one moment between its call and its answer.

The algorithm is Lowe's "just in time" one (Testing for linearizability, 2017), for each key alone (P-compositionality:
Horn and Kroening, 2015): events in the order of time, and a set of all configurations that explain what was answered so
far. A configuration is the value, and which of the calls under way have happened. An operation is made to happen when
its answer comes, and others before it only where that is needed to explain the answer; a read, which changes nothing,
as soon as the value is the one that it has answered.

Operations of unknown result never have to happen. Those of one request that have no end are interchangeable, so only
their number counts; they are made to happen only where they lead to the value that an answer needs; and of two
configurations that differ only in them, the one that has fewer behind it explains all that the other does, which is
dropped. So a thousand lost additions of 1 do not make 2^1000 configurations.
"""

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.history.operations import UNKNOWN, Add, Operation, Put, Read

MAX_CONFIGURATIONS = 1_000_000
LAST_SHOWN = 12
"""Operations and values in the error."""
CALL, ANSWER = 0, 1
"""Kinds of events. At the same moment calls come first: such operations are concurrent."""
Happened = frozenset[int]
"""Operations under way, with a known end, that have happened."""
Spent = tuple[int, ...]
"""For each request: how many of its endless operations have happened."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """One explanation of what was answered so far."""

    value: int
    happened: Happened
    spent: Spent


@dataclass
class Configurations:
    """A set of them, without those that another one makes needless."""

    count: int = 0
    _spent: dict[tuple[int, Happened], list[Spent]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Configuration]:
        for (value, happened), all_spent in self._spent.items():
            for spent in all_spent:
                yield Configuration(value, happened, spent)

    def add(self, configuration: Configuration) -> bool:
        """Whether it is new, and needed."""
        rivals = self._spent.setdefault((configuration.value, configuration.happened), [])
        if any(_is_within(other, configuration.spent) for other in rivals):
            return False
        needed = [other for other in rivals if not _is_within(configuration.spent, other)]
        self.count += 1 + len(needed) - len(rivals)
        rivals[:] = [*needed, configuration.spent]
        return True


def _is_within(spent: Spent, other: Spent) -> bool:
    return all(mine <= others for mine, others in zip(spent, other, strict=True))


class NotLinearizable(AssertionError):
    """No order of the operations explains an answer."""

    def __init__(self, operation: Operation, before: Sequence[Operation], values: Iterable[int]) -> None:
        possible = sorted(values)[:LAST_SHOWN]
        lines = [f"  {other}" for other in before]
        super().__init__(
            f"nothing explains {operation}; before it the value was one of {possible}; the last operations:\n"
            + "\n".join(lines)
        )
        self.operation = operation


class TooManyConfigurations(AssertionError):
    """The history of one key is too concurrent to be decided within the bound. What clients put should be unique."""


def check(history: Iterable[Operation], *, initial: int = 0, limit: int = MAX_CONFIGURATIONS) -> int:
    """Raise unless the operations of each key are linearizable; returns the number of keys. limit: configurations of
    one key that are made.

    Raises:
        NotLinearizable: for some key they are not.
        TooManyConfigurations: that could not be decided.
    """
    by_key: dict[str, list[Operation]] = defaultdict(list)
    for operation in history:
        by_key[operation.key].append(operation)
    for operations in by_key.values():
        _Search(operations, initial, limit).run()
    return len(by_key)


class _Search:
    """Of the operations of one key."""

    def __init__(self, operations: Sequence[Operation], initial: int, limit: int) -> None:
        self._operations = operations
        self._left = self._limit = limit
        self._under_way: set[int] = set()
        """Operations that have been called, and have an end to come."""
        self._requests = list({o.request for o in operations if o.answered_at == math.inf})
        self._endless = [0] * len(self._requests)
        """For each of these requests: how many of its operations that have no end have been called."""
        self._configurations = Configurations()
        self._configurations.add(Configuration(initial, frozenset(), (0,) * len(self._requests)))

    def run(self) -> None:
        for _, kind, number in sorted(self._events()):
            operation = self._operations[number]
            if kind == CALL and operation.answered_at == math.inf:
                self._endless[self._requests.index(operation.request)] += 1
            elif kind == CALL:
                self._called(number, operation)
            else:
                self._answered(number, operation)

    def _called(self, number: int, operation: Operation) -> None:
        self._under_way.add(number)
        if isinstance(operation.request, Read):
            configurations, self._configurations = self._configurations, Configurations()
            for configuration in configurations:
                self._configurations.add(self._after(configuration.value, configuration.happened, configuration.spent))

    def _after(self, value: int, happened: Happened, spent: Spent) -> Configuration:
        """With the reads that fit the value."""
        fitting = {
            number
            for number in self._under_way
            if isinstance(self._operations[number].request, Read) and self._operations[number].result == value
        }
        return Configuration(value, happened | fitting, spent)

    def _events(self) -> Iterator[tuple[float, int, int]]:
        for number, operation in enumerate(self._operations):
            yield operation.called_at, CALL, number
            if operation.answered_at != math.inf:
                yield operation.answered_at, ANSWER, number

    def _answered(self, number: int, operation: Operation) -> None:
        explained = Configurations()
        for configuration in self._explaining(number):
            happened = configuration.happened - {number}
            explained.add(Configuration(configuration.value, happened, configuration.spent))
        if operation.result is UNKNOWN:
            # Or it has not happened, and never will.
            for configuration in self._configurations:
                if number not in configuration.happened:
                    explained.add(configuration)
        self._under_way.discard(number)
        if not explained.count:
            raise NotLinearizable(operation, self._last_before(operation), {c.value for c in self._configurations})
        self._configurations = explained

    def _last_before(self, operation: Operation) -> list[Operation]:
        at = operation.answered_at
        before = [other for other in self._operations if other.called_at <= at]
        return sorted(before, key=lambda other: min(other.answered_at, at))[-LAST_SHOWN:]

    def _explaining(self, number: int) -> Iterator[Configuration]:
        """The configurations in which an operation has happened, with as few others before it as there can be."""
        seen = Configurations()
        todo: deque[Configuration] = deque()
        for configuration in self._configurations:
            seen.add(configuration)
            todo.append(configuration)
        while todo:
            configuration = todo.popleft()
            if number in configuration.happened:
                yield configuration
                continue
            for following in self._followers(configuration):
                # Those that are made, not those that are looked at: of one there may be millions, each of some memory.
                self._left -= 1
                if self._left < 0:
                    raise TooManyConfigurations(f"more than {self._limit} until {self._operations[number]}")
                if seen.add(following):
                    todo.append(following)

    def _followers(self, configuration: Configuration) -> Iterator[Configuration]:
        """After one more operation under way has happened, and before it as few of the endless ones as it needs."""
        value, happened, spent = configuration.value, configuration.happened, configuration.spent
        for number in self._under_way - happened:
            operation = self._operations[number]
            needed = operation.value_before()
            ways = [spent] if needed in (UNKNOWN, value) else self._ways(value, needed, spent)
            after, result = operation.request.apply(value if needed is UNKNOWN else needed)
            if operation.result in (UNKNOWN, result):
                for more_spent in ways:
                    yield self._after(after, happened | {number}, more_spent)

    def _ways(self, value: int, needed: int, spent: Spent) -> Iterator[Spent]:
        """All ways in which endless operations lead from one value to another: additions, maybe after one `Put`."""
        yield from self._sums(needed - value, spent, 0)
        for index, request in enumerate(self._requests):
            if isinstance(request, Put) and spent[index] < self._endless[index]:
                yield from self._sums(needed - request.amount, _with_more(spent, index, 1), 0)

    def _sums(self, missing: int, spent: Spent, index: int) -> Iterator[Spent]:
        """The ways to add what is missing, by the requests from this one on."""
        if missing == 0:
            yield spent
        if missing <= 0 or index == len(self._requests):
            return
        request = self._requests[index]
        yield from self._sums(missing, spent, index + 1)
        if isinstance(request, Add):
            for count in range(1, self._endless[index] - spent[index] + 1):
                yield from self._sums(missing - count * request.amount, _with_more(spent, index, count), index + 1)


def _with_more(spent: Spent, index: int, count: int) -> Spent:
    return (*spent[:index], spent[index] + count, *spent[index + 1 :])
