"""The players' ledger finds what was acknowledged and is lost, and excuses rooms of shards that were killed alone."""

import pytest
from onelane.core.placement import Member, Placement

from services.arena.ledger import Crash, Ledger


def placement(shards: int) -> Placement:
    return Placement(1, tuple(Member(f"lobby-{n}", f"127.0.0.1:{1000 + n}", "") for n in range(shards)))


def room_of(shard: str, of: Placement) -> str:
    return next(room for room in map("room-{}".format, range(999)) if of.owner_of(room).name == shard)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def killed(ledger: Ledger, shard: str, *placements: Placement) -> None:
    ledger.crashes.append(Crash(shard, list(placements)))
    ledger.crashes_over = len(ledger.crashes)


def test_a_player_who_is_not_in_the_room_any_more_is_lost(ledger: Ledger) -> None:
    ledger.joined("r", "ann", ["ann"], 0)
    ledger.joined("r", "bob", ["bob"], 0)
    assert list(ledger.lost()) == ["r: 1 who joined are not in it, ann for example; killed meanwhile: no shard"]
    ledger.joined("r", "eve", ["bob", "eve"], 0)
    assert len(list(ledger.lost())) == 1


def test_a_room_is_excused_where_its_shard_was_killed_since_its_players_were_seen(ledger: Ledger) -> None:
    room = room_of("lobby-1", placement(2))
    ledger.joined(room, "ann", ["ann"], 0)
    killed(ledger, "lobby-1", placement(2))
    ledger.missed(room, ["ann"])
    assert (list(ledger.lost()), ledger.excused) == ([], 1)


def test_a_room_of_another_shard_than_the_killed_one_is_lost(ledger: Ledger) -> None:
    room = room_of("lobby-1", placement(2))
    ledger.joined(room, "ann", ["ann"], 0)
    killed(ledger, "lobby-0", placement(2))
    ledger.missed(room, ["ann"])
    assert [line.rpartition(": ")[2] for line in ledger.lost()] == ["lobby-0"]


def test_a_room_that_was_seen_after_the_kill_is_lost(ledger: Ledger) -> None:
    room = room_of("lobby-1", placement(2))
    ledger.joined(room, "ann", ["ann"], 0)
    killed(ledger, "lobby-1", placement(2))
    ledger.joined(room, "bob", ["ann", "bob"], ledger.crashes_over)
    ledger.missed(room, ["ann"])
    assert (len(list(ledger.lost())), ledger.excused) == (1, 0)


def test_an_answer_that_the_killed_process_may_have_sent_proves_nothing(ledger: Ledger) -> None:
    room = room_of("lobby-1", placement(2))
    ledger.joined(room, "ann", ["ann"], 0)
    killed(ledger, "lobby-1", placement(2))
    ledger.joined(room, "bob", ["ann", "bob"], 0)
    ledger.missed(room, ["ann", "bob"])
    assert (list(ledger.lost()), ledger.excused) == ([], 1)


def test_a_shard_killed_in_a_change_excuses_rooms_by_the_placement_before_and_by_that_after(ledger: Ledger) -> None:
    before, after = placement(1), placement(2)
    room = room_of("lobby-1", after)
    ledger.joined(room, "ann", ["ann"], 0)
    killed(ledger, "lobby-1", before, after)
    ledger.missed(room, ["ann"])
    assert (list(ledger.lost()), ledger.excused) == ([], 1)


def test_a_player_who_was_missed_is_not_missed_again_unless_joined_anew(ledger: Ledger) -> None:
    """Else a room that was excused would be lost by the next who asks for the same player."""
    room = room_of("lobby-1", placement(2))
    ledger.joined(room, "ann", ["ann"], 0)
    killed(ledger, "lobby-1", placement(2))
    ledger.joined(room, "bob", ["bob"], ledger.crashes_over)
    ledger.missed(room, ["ann"])
    assert (list(ledger.lost()), ledger.excused) == ([], 1)
    ledger.joined(room, "ann", ["bob", "ann"], ledger.crashes_over)
    ledger.missed(room, ["ann"])
    assert [line.rpartition(": ")[2] for line in ledger.lost()] == ["no shard"]


def test_a_record_is_never_excused(ledger: Ledger) -> None:
    ledger.read("ann", 1200.0, 3)
    ledger.rated("ann", 1216.0, on_board=True)
    killed(ledger, "lobby-0", placement(1))
    ledger.read("ann", 1216.0, 4)
    assert list(ledger.lost()) == []
    ledger.read("ann", 1200.0, 3)
    assert list(ledger.lost()) == [
        "ann: the rating was 1216.0, and is 1200.0",
        "ann: expected 4 games, and they are 3",
    ]


def test_a_game_of_unknown_outcome_may_be_in_the_record_or_not_but_once_at_most(ledger: Ledger) -> None:
    ledger.read("ann", 1200.0, 3)
    ledger.not_told(["ann"])
    ledger.read("ann", 1200.0, 3)
    ledger.read("ann", 1216.0, 4)
    assert list(ledger.lost()) == []
    ledger.read("ann", 1232.0, 5)
    assert list(ledger.lost()) == ["ann: expected 3 to 4 games, and they are 5"]


def test_a_line_that_is_not_on_the_board_any_more_is_lost(ledger: Ledger) -> None:
    ledger.read("ann", 1200.0, 0)
    ledger.rated("ann", 1216.0, on_board=True)
    ledger.read_board({"ann": 1216.0})
    assert list(ledger.lost()) == []
    ledger.read_board({})
    assert list(ledger.lost()) == ["ann: the board had 1216.0, and has None"]
