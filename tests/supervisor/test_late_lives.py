"""Which lives of a machine hold a change up: by what each says of itself."""

from collections.abc import Iterable

from onelane.supervisor.late_lives import BETWEEN_LOOKS_S, LateLives
from onelane.v1.control_pb2 import HandoffProgress

ONE, OTHER, ELSEWHERE = 1, 2, 3
LIMIT = 4
"""In ticks."""


def late_lives() -> LateLives:
    return LateLives(LIMIT * BETWEEN_LOOKS_S)


def ticks(late: LateLives, number: int, *, epoch: int = 7, **says: Iterable[int]) -> list[list[int]]:
    """What each of so many ticks finds of lives 1 and 2, which say meanwhile whom they wait for; None: nothing."""
    late_now = []
    for _ in range(number):
        for life, waits_for in zip((ONE, OTHER), (says.get("one"), says.get("other")), strict=True):
            if waits_for is not None:
                late.progressed(life, HandoffProgress(epoch=epoch, waits_for=waits_for))
        late_now.append(late.tick(epoch, [ONE, OTHER]))
    return late_now


def test_a_life_is_late_by_its_own_word_and_those_that_wait_for_it_are_not() -> None:
    assert ticks(late_lives(), LIMIT + 1, one=[ONE], other=[ONE]) == [[]] * LIMIT + [[ONE]]


def test_it_is_late_too_where_it_waits_for_others_as_well() -> None:
    assert ticks(late_lives(), LIMIT + 1, one=[ONE, ELSEWHERE], other=[]) == [[]] * LIMIT + [[ONE]]


def test_whoever_waits_for_lives_elsewhere_is_never_late() -> None:
    assert ticks(late_lives(), 100, one=[ELSEWHERE], other=[ONE]) == [[]] * 100


def test_a_life_that_says_nothing_is_late() -> None:
    assert ticks(late_lives(), LIMIT + 1, other=[ONE]) == [[]] * LIMIT + [[ONE]]


def test_a_life_that_falls_silent_while_it_waits_is_late() -> None:
    late = late_lives()
    ticks(late, 3, one=[OTHER], other=[])
    assert ticks(late, LIMIT + 1) == [[]] * LIMIT + [[ONE]]


def test_a_life_that_has_said_that_nothing_is_missing_may_be_silent() -> None:
    late = late_lives()
    ticks(late, 1, one=[], other=[])
    assert ticks(late, 100) == [[]] * 100


def test_a_silent_life_is_late_where_another_one_waits_for_it_whatever_it_has_said_last() -> None:
    """As the next life of a shard that has died does: it needs once more what was handed over."""
    late = late_lives()
    ticks(late, 1, one=[], other=[])
    assert ticks(late, LIMIT + 1, other=[ONE]) == [[]] * LIMIT + [[ONE]]


def test_a_life_that_gets_on_is_not_late() -> None:
    late = late_lives()
    for departed in range(100):
        late.progressed(ONE, HandoffProgress(epoch=7, waits_for=[ONE], leaving=100 - departed, departed=departed))
        assert late.tick(7, [ONE]) == []


def test_a_life_that_waits_for_its_store_is_not_late() -> None:
    """A database that is away is no reason to lose what is in memory."""
    late = late_lives()
    for _ in range(100):
        late.progressed(ONE, HandoffProgress(epoch=7, waits_for=[ELSEWHERE], waits_for_store=True))
        late.progressed(OTHER, HandoffProgress(epoch=7, waits_for_store=True))
        assert late.tick(7, [ONE, OTHER]) == []


def test_each_change_has_its_own_time() -> None:
    late = late_lives()
    ticks(late, LIMIT, one=[ONE], other=[])
    assert ticks(late, LIMIT + 1, epoch=8, one=[ONE], other=[]) == [[]] * LIMIT + [[ONE]]


def test_a_word_of_the_last_change_says_nothing_of_this_one() -> None:
    late = late_lives()
    ticks(late, 1, epoch=8, one=[ONE], other=[])
    for _ in range(LIMIT):
        late.progressed(ONE, HandoffProgress(epoch=7))
        late.progressed(OTHER, HandoffProgress(epoch=8))
        late_now = late.tick(8, [ONE, OTHER])
    assert late_now == [ONE]
