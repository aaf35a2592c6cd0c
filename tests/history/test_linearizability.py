"""The history checker finds what is wrong, and nothing else."""

import math
import time
from collections.abc import Iterator
from random import Random

import pytest

from tests.history.linearizability import NotLinearizable, TooManyConfigurations, check
from tests.history.operations import Add, Lose, Operation, Put, Read, Request


def operation(request: Request, called_at: float, answered_at: float, result: int | None, key: str = "k") -> Operation:
    return Operation(key, request, called_at, answered_at, result)


def lost(request: Request, called_at: float, key: str = "k") -> Operation:
    """Without an answer."""
    return Operation(key, request, called_at)


LINEARIZABLE = {
    "nothing": [],
    "one after another": [operation(Add(2), 0, 1, 2), operation(Put(7), 2, 3, 7), operation(Read(), 4, 5, 7)],
    "two at once, in either order": [operation(Add(1), 0, 9, 2), operation(Add(1), 1, 8, 1)],
    "a read at once with an addition sees it": [operation(Add(1), 0, 9, 1), operation(Read(), 1, 2, 1)],
    "a read at once with an addition does not see it": [operation(Add(1), 0, 9, 1), operation(Read(), 1, 2, 0)],
    "calls that touch at one moment": [operation(Add(1), 0, 1, 2), operation(Add(1), 1, 2, 1)],
    "three at once that fit in one order only": [
        operation(Put(5), 0, 9, 5),
        operation(Add(1), 0, 9, 6),
        operation(Read(), 0, 9, 6),
    ],
    "a lost addition has happened": [lost(Add(1), 0), operation(Read(), 1, 2, 1)],
    "a lost addition has not happened": [lost(Add(1), 0), operation(Read(), 1, 2, 0)],
    "a lost addition happens much later": [
        lost(Add(1), 0),
        operation(Read(), 1, 2, 0),
        operation(Read(), 3, 4, 0),
        operation(Read(), 5, 6, 1),
    ],
    "one of two lost additions has happened": [lost(Add(1), 0), lost(Add(1), 1), operation(Read(), 2, 3, 1)],
    "a lost addition happens after a put": [
        lost(Add(1), 0),
        operation(Put(5), 1, 2, 5),
        operation(Read(), 3, 4, 6),
    ],
    "a kill has lost the state": [
        operation(Add(3), 0, 1, 3),
        operation(Lose(0), 2, 3, None),
        operation(Add(1), 4, 5, 1),
    ],
    "a kill has lost nothing": [operation(Add(3), 0, 1, 3), operation(Lose(0), 2, 3, None), operation(Add(1), 4, 5, 4)],
    "keys have nothing to do with each other": [operation(Add(1), 0, 1, 1), operation(Add(1), 2, 3, 1, key="l")],
}
WRONG = {
    "an update is lost": [operation(Add(1), 0, 1, 1), operation(Add(1), 2, 3, 2), operation(Read(), 4, 5, 1)],
    "an update happens twice": [operation(Add(1), 0, 1, 1), operation(Read(), 2, 3, 2)],
    "a lost update happens twice": [lost(Add(1), 0), operation(Read(), 1, 2, 2)],
    "a lost update is undone": [lost(Add(1), 0), operation(Read(), 1, 2, 1), operation(Read(), 3, 4, 0)],
    "a lost update happens before its call": [operation(Read(), 0, 1, 1), lost(Add(1), 2)],
    "two have the same sum": [operation(Add(1), 0, 9, 1), operation(Add(1), 0, 9, 1)],
    "a read is stale": [operation(Put(5), 0, 1, 5), operation(Read(), 2, 3, 0)],
    "reads go back in time": [
        operation(Add(1), 0, 9, 1),
        operation(Read(), 1, 2, 1),
        operation(Read(), 3, 4, 0),
    ],
    "state is lost without a kill": [operation(Add(3), 0, 1, 3), operation(Add(1), 4, 5, 1)],
    "state is lost before the kill": [
        operation(Add(3), 0, 1, 3),
        operation(Read(), 2, 3, 0),
        operation(Lose(0), 4, 5, None),
    ],
    "state is lost after the kill was over": [
        operation(Add(3), 0, 1, 3),
        operation(Lose(0), 2, 3, None),
        operation(Read(), 4, 5, 3),
        operation(Read(), 6, 7, 0),
    ],
    "one kill loses twice": [
        operation(Add(3), 0, 1, 3),
        operation(Lose(0), 2, 9, None),
        operation(Add(1), 3, 4, 1),
        operation(Add(1), 5, 6, 1),
    ],
}


@pytest.mark.parametrize("name", LINEARIZABLE)
def test_a_history_that_one_copy_explains_passes(name: str) -> None:
    check(LINEARIZABLE[name])


@pytest.mark.parametrize("name", WRONG)
def test_a_history_that_nothing_explains_is_refused(name: str) -> None:
    with pytest.raises(NotLinearizable):
        check(WRONG[name])


def test_the_error_names_the_operation_that_nothing_explains_and_those_before_it() -> None:
    read = operation(Read(), 2, 3, 7)
    with pytest.raises(NotLinearizable, match=r"nothing explains .*Read.*result=7.*one of \[1\].*\n.*Add") as refused:
        check([operation(Add(1), 0, 1, 1), read, operation(Read(), 4, 5, 1)])
    assert refused.value.operation == read


def simulated(rng: Random, calls: int, clients: int, *, lost_share: float) -> Iterator[Operation]:
    """What clients of one correct number see. Some of them never get an answer, whether or not it has happened."""
    free_at, value = [0.0] * clients, 0
    for number in range(calls):
        client = min(range(clients), key=free_at.__getitem__)
        called_at = free_at[client] + rng.random() * 0.1
        # Each happens at its place in one order; the calls of other clients reach over that moment.
        happens_at = max(number * 1.0, called_at)
        answered_at = free_at[client] = happens_at + rng.random() * clients
        requests: list[Request] = [Add(1), Add(2), Put(rng.randrange(10**6)), Read()]
        request = rng.choice(requests)
        if rng.random() < lost_share and not isinstance(request, Read):
            if rng.random() < 0.5:
                value, _ = request.apply(value)
            yield lost(request, called_at)
        else:
            value, result = request.apply(value)
            yield operation(request, called_at, answered_at, result)


def is_explained_by_some_order(operations: list[Operation]) -> bool:
    """By trying all of them: slow, and plainly right."""

    def can_follow(left: frozenset[int], value: int) -> bool:
        ends = [operations[number].answered_at for number in left]
        if all(end == math.inf for end in ends):
            return True
        for number in left:
            following = operations[number]
            if following.called_at <= min(ends):
                after, result = following.request.apply(value)
                if following.result in (None, result) and can_follow(left - {number}, after):
                    return True
                if following.result is None and can_follow(left - {number}, value):
                    return True
        return False

    return can_follow(frozenset(range(len(operations))), 0)


def test_it_agrees_with_the_trial_of_all_orders_on_random_histories() -> None:
    rng, verdicts = Random(1), []
    requests: list[Request] = [Add(1), Add(1), Put(2), Read()]
    for _ in range(600):
        operations = []
        for _ in range(6):
            called_at = rng.random() * 6
            request = rng.choice(requests)
            if rng.random() < 0.25:
                operations.append(lost(request, called_at))
            else:
                operations.append(operation(request, called_at, called_at + rng.random() * 4, rng.randint(0, 3)))
        try:
            check(operations)
            verdicts.append(True)
        except NotLinearizable:
            verdicts.append(False)
        assert verdicts[-1] == is_explained_by_some_order(operations), operations
    assert 10 < sum(verdicts) < 590


def test_a_long_history_of_many_clients_with_many_lost_calls_is_decided_in_time() -> None:
    operations = list(simulated(Random(2), 2000, 4, lost_share=0.01))
    began_at = time.process_time()
    check(operations)
    assert time.process_time() - began_at < 5


def test_one_wrong_answer_in_a_long_history_is_found() -> None:
    operations = list(simulated(Random(3), 3000, 4, lost_share=0.0))
    at = next(n for n, o in enumerate(operations) if n > 1500 and isinstance(o.request, Add) and o.result)
    wrong = operations[at]
    operations[at] = operation(wrong.request, wrong.called_at, wrong.answered_at, 1_000_000)
    with pytest.raises(NotLinearizable):
        check(operations)


def test_a_history_that_is_too_concurrent_ends_at_the_bound() -> None:
    operations = [operation(Put(number), 0, 99, number) for number in range(40)]
    operations += [operation(Add(1000), 0, 100 + number, 1_000_000) for number in range(2)]
    with pytest.raises(TooManyConfigurations):
        check(operations, limit=1000)


def test_the_bound_counts_what_is_made_for_one_answer_before_that_is_looked_at() -> None:
    """Lost additions of three amounts explain one answer in thousands of ways: likely what took a run 23 GB."""
    operations = [Operation("k", Add(amount), 0.0) for amount in (1, 2, 3) for _ in range(100)]
    operations.append(operation(Add(1), 1, 2, 301))
    with pytest.raises(TooManyConfigurations):
        check(operations, limit=300)
