"""What an operator wants of an app: each command alters it, or is refused with one sentence and changes nothing."""

from functools import reduce

import pytest
from onelane.supervisor.target import (
    Alteration,
    AppTarget,
    NotChanged,
    drained,
    pinned,
    replaced,
    returned,
    scaled,
    unpinned,
)

LOBBY = AppTarget("lobby", 3, {"apples": 2})


def altered(*alterations: Alteration) -> AppTarget:
    return reduce(lambda target, alter: alter(target), alterations, LOBBY)


def test_commands_add_up_and_the_last_number_of_shards_wins() -> None:
    target = altered(scaled(5), replaced(1), scaled(4), pinned("pears", 3), unpinned("apples"), drained(0))
    assert target == AppTarget("lobby", 4, {"pears": 3}, frozenset({0}), frozenset({1}))
    assert target.placed == (1, 2, 3)


def test_a_pin_to_a_shard_that_is_not_there_waits_until_it_is() -> None:
    assert altered().placed_pins == {"apples": 2}
    assert altered(scaled(2)).placed_pins == {}
    assert altered(scaled(2), scaled(3)).placed_pins == {"apples": 2}
    assert altered(drained(2)).placed_pins == {}


def test_a_drained_shard_that_is_replaced_or_has_come_back_owns_keys_again() -> None:
    assert altered(drained(1)).placed == (0, 2)
    assert altered(drained(1), replaced(1)).placed == (0, 1, 2)
    assert altered(drained(1), returned(1)).placed == (0, 1, 2)
    assert altered(drained(2), scaled(2), scaled(3)).placed == (0, 1, 2)


@pytest.mark.parametrize(
    ("alterations", "reason"),
    [
        ([scaled(0)], "lobby cannot have 0 shards: at least 1 is needed"),
        ([scaled(-2)], "lobby cannot have -2 shards: at least 1 is needed"),
        ([drained(0), scaled(1)], "lobby cannot have 1 shards: all of them are drained"),
        ([drained(0), drained(1), drained(2)], "no other shard of lobby could take over the keys of lobby-2"),
        ([pinned("k", 3)], "lobby has no shard 3: it has the shards 0 to 2"),
        ([pinned("k", -1)], "lobby has no shard -1: it has the shards 0 to 2"),
        ([unpinned("k")], "lobby has no pin for the key 'k'"),
        ([scaled(2), replaced(2)], "lobby has no shard 2 any more"),
    ],
)
def test_what_is_not_possible_is_refused(alterations: list[Alteration], reason: str) -> None:
    with pytest.raises(NotChanged) as refused:
        altered(*alterations)
    assert str(refused.value) == reason
