"""The checker of owners finds two of one epoch, and one that answers after the next."""

import pytest

from tests.chaos.clients import Answer
from tests.chaos.owners import TwoOwners, check


def answers(*rows: tuple[float, float, str]) -> list[Answer]:
    """rows: when called, when answered, by whom."""
    return [Answer("k", called_at, answered_at, shard) for called_at, answered_at, shard in rows]


def test_owners_follow_each_other_by_epoch_and_a_shard_by_its_next_life() -> None:
    assert check(answers((0, 1, "a/m-0 7 3"), (2, 3, "b/m-0 8 4"), (4, 5, "b/m-0 8 9"), (6, 7, "a/m-0 9 3"))) == 4


def test_two_shards_of_one_epoch_are_two_owners() -> None:
    with pytest.raises(TwoOwners, match="in epoch 7: "):
        check(answers((0, 9, "a/m-0 7 3"), (1, 2, "b/m-0 7 4")))


@pytest.mark.parametrize("late", ["a/m-0 7 3", "b/m-0 8 3"])
def test_an_answer_of_an_earlier_epoch_or_life_to_a_call_that_was_made_after_one_of_the_next(late: str) -> None:
    with pytest.raises(TwoOwners, match="after an answer of"):
        check(answers((0, 1, "b/m-0 8 4"), (1.5, 2, late)))


def test_an_answer_of_an_earlier_epoch_may_come_late() -> None:
    assert check(answers((0, 9, "a/m-0 7 3"), (1, 2, "b/m-0 8 4"))) == 2
