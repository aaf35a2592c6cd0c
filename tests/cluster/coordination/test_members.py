"""The members of one etcd: which is asked next, and what their clocks say together."""

import pytest
from onelane.cluster.coordination.members import agreed_ahead_s, ahead_of_date_s, next_member

ORDER = ("one", "two", "three")
DAY_S = 86_400.0


@pytest.mark.parametrize(
    ("unanswered", "expected"),
    [
        ([], "one"),
        ([("one", 9.6)], "one"),
        ([("one", 9.5)], "two"),
        ([("one", 9.9), ("one", 9.0)], "two"),
        ([("one", 9.0), ("two", 9.0)], "three"),
        ([("two", 9.0)], "one"),
        ([("one", 9.0), ("two", 9.0), ("three", 9.0)], "one"),
    ],
)
def test_a_member_that_owes_an_answer_for_too_long_is_not_asked_while_another_one_does_not(
    unanswered: list[tuple[str, float]], expected: str
) -> None:
    assert next_member(ORDER, unanswered, now=10.0, late_s=0.5) == expected


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([2.0], 2.0),
        ([0.0, 1.0, 2.0], 1.0),
        ([-DAY_S, 0.0, 1.0], 1.0),
        ([0.0, 1.0, DAY_S], 1.0),
        ([DAY_S, DAY_S, 0.0], DAY_S),
        ([0.0, None, 1.0], 1.0),
        ([None, 5.0], 5.0),
        ([0.0, 30.0, 61.0], 30.0),
        # Nobody knows which of them are right.
        ([0.0, 31.0], None),
        ([0.0, None, DAY_S], None),
        ([None, None, DAY_S], None),
        ([0.0, 40.0, 80.0], None),
        ([0.0, 0.0, DAY_S, DAY_S], None),
        ([None], None),
        ([], None),
    ],
)
def test_a_clock_is_compared_with_that_of_most_members(members: list[float | None], expected: float | None) -> None:
    assert agreed_ahead_s(members) == expected


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("Thu, 01 Jan 1970 00:01:40 GMT", 20.0),
        ("Thu, 01 Jan 1970 00:02:10 GMT", -10.0),
        ("yesterday", None),
        ("", None),
    ],
)
def test_a_date_of_http_is_compared_with_a_clock(date: str, expected: float | None) -> None:
    assert ahead_of_date_s(date, 120.2) == expected
