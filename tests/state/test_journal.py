"""The journal of one lane, with the order of events in the test's hands."""

import asyncio
from pathlib import Path
from time import time
from typing import Any

import pytest
from onelane.errors import Fenced, NotKept, StoreUnavailable, UnwritableValue
from onelane.state import journal
from onelane.state.store import RememberedAnswer, Row, StoredReminder

from tests.bounds import BOUND_S
from tests.state.journals import SteppedJournal, next_step

DOWN = StoreUnavailable("a.sqlite", "disk full")


@pytest.fixture
def stepped(tmp_path: Path) -> SteppedJournal:
    return SteppedJournal(tmp_path)


async def load(stepped: SteppedJournal, *keys: str) -> None:
    for key in keys:
        stepped.journal.load(key, stepped.leave(f"load {key}"))
    await next_step()
    stepped.queue.step()
    assert [status for _, status in stepped.left] == [""] * len(keys)
    stepped.left.clear()


def turn(stepped: SteppedJournal, key: str, text: str, name: str) -> bool:
    """A turn that sets the text of a key; whether its answer waits."""
    stepped.dict.texts[key] = text
    return stepped.journal.end_turn(key, stepped.leave(name))


async def test_an_answer_leaves_once_the_change_is_in_the_store(stepped: SteppedJournal) -> None:
    await load(stepped, "k")
    assert turn(stepped, "k", "one", "first")
    await next_step()
    assert (stepped.left, stepped.stored("k")) == ([], "")
    stepped.queue.step()
    assert (stepped.left, stepped.stored("k")) == ([("first", "")], "one")


async def test_a_turn_that_changes_nothing_waits_for_nothing(stepped: SteppedJournal) -> None:
    await load(stepped, "k")
    assert not stepped.journal.end_turn("k", stepped.leave("idle"))


async def test_a_read_waits_for_the_change_that_it_has_seen(stepped: SteppedJournal) -> None:
    await load(stepped, "k", "other")
    turn(stepped, "k", "one", "write")
    assert stepped.journal.rest_on("k", stepped.leave("read"))
    assert not stepped.journal.rest_on("other", stepped.leave("read of another key"))
    await next_step()
    stepped.queue.step()
    assert stepped.left == [("write", ""), ("read", "")]


async def test_turns_whose_calls_came_while_the_batch_was_due_are_in_it(stepped: SteppedJournal) -> None:
    """As those of other connections, which the loop reads in its next iteration."""
    await load(stepped, "a", "b")
    turn(stepped, "a", "one", "first")
    await asyncio.sleep(0)
    turn(stepped, "b", "two", "second")
    await next_step()
    stepped.queue.step()
    assert [name for name, _ in stepped.left] == ["first", "second"]


async def test_all_turns_of_one_iteration_are_one_commit(stepped: SteppedJournal) -> None:
    await load(stepped, "a", "b")
    for key in ("a", "b", "a"):
        turn(stepped, key, f"{key}{len(stepped.journal._gathering.leaving)}", key)
    await next_step()
    assert len(stepped.queue.asked) == 1
    stepped.queue.step()
    assert (stepped.stored("a"), stepped.stored("b")) == ("a2", "b1")
    assert [name for name, _ in stepped.left] == ["a", "b", "a"]


async def test_the_next_batch_gathers_while_one_is_written(stepped: SteppedJournal) -> None:
    await load(stepped, "a", "b")
    turn(stepped, "a", "1", "first")
    await next_step()
    turn(stepped, "a", "2", "second")
    turn(stepped, "b", "3", "third")
    await next_step()
    assert len(stepped.queue.asked) == 1
    stepped.queue.step()
    assert stepped.left == [("first", "")]
    # It rests on the second.
    assert stepped.journal.rest_on("a", stepped.leave("read"))
    await next_step()
    stepped.queue.step()
    assert [name for name, _ in stepped.left] == ["first", "second", "third", "read"]


async def test_a_failed_commit_fails_what_rests_on_it_and_nothing_else(stepped: SteppedJournal) -> None:
    await load(stepped, "a", "b")
    turn(stepped, "a", "1", "first")
    await next_step()
    turn(stepped, "a", "2", "resting")
    turn(stepped, "b", "3", "other key")
    stepped.queue.errors = [DOWN]
    stepped.queue.step()
    assert stepped.left == [("first", "UNAVAILABLE"), ("resting", "UNAVAILABLE")]
    await next_step()
    stepped.queue.step()
    assert stepped.left[2:] == [("other key", "")]
    assert (stepped.stored("a"), stepped.stored("b")) == ("", "3")


async def test_what_has_failed_is_not_seen_by_the_next_turn(stepped: SteppedJournal) -> None:
    await load(stepped, "k")
    turn(stepped, "k", "kept", "kept")
    await next_step()
    stepped.queue.step()
    turn(stepped, "k", "lost", "lost")
    await next_step()
    stepped.queue.errors = [DOWN]
    stepped.queue.step()
    assert "k" not in stepped.journal.residents
    stepped.left.clear()
    await load(stepped, "k")
    assert stepped.dict.texts == {"k": "kept"}


async def test_a_turn_that_runs_while_its_key_is_lost_fails_and_is_then_dropped(stepped: SteppedJournal) -> None:
    await load(stepped, "k")
    turn(stepped, "k", "1", "first")
    await next_step()
    stepped.in_turn.add("k")
    stepped.queue.errors = [DOWN]
    stepped.queue.step()
    # Its handler may still read the entry.
    assert stepped.dict.texts == {"k": "1"}
    with pytest.raises(NotKept):
        turn(stepped, "k", "2", "second")
    stepped.journal.turn_over("k")
    assert (stepped.dict.texts, stepped.journal.residents) == ({}, {})


async def test_a_fenced_key_fails_and_the_others_of_its_batch_are_written(stepped: SteppedJournal) -> None:
    await load(stepped, "a", "b")
    stepped.others.load(["a"], epoch=1, at=0.0)
    turn(stepped, "a", "1", "fenced")
    turn(stepped, "b", "2", "kept")
    await next_step()
    stepped.queue.step()
    assert sorted(stepped.left) == [("fenced", "UNAVAILABLE"), ("kept", "")]
    assert (stepped.stored("a"), stepped.stored("b")) == ("", "2")


async def test_a_key_that_another_life_has_claimed_is_not_loaded(stepped: SteppedJournal) -> None:
    stepped.others.load(["k"], epoch=1, at=0.0)
    for key in ("k", "free"):
        stepped.journal.load(key, stepped.leave(key))
    await next_step()
    stepped.queue.step()
    assert stepped.left == [("k", "UNAVAILABLE"), ("free", "")]
    assert [*stepped.journal.residents] == ["free"]


async def test_a_fenced_error_that_names_no_key_of_the_batch_ends_it(stepped: SteppedJournal) -> None:
    class Lying:
        def commit(self, *_: object, **__: object) -> None:
            raise Fenced(["someone else's"])

    await load(stepped, "k")
    stepped.queue.store = Lying()  # type: ignore[assignment]
    turn(stepped, "k", "1", "first")
    await next_step()
    stepped.queue.step()
    assert stepped.left == [("first", "UNAVAILABLE")]


async def test_keys_that_are_asked_for_together_are_loaded_together(stepped: SteppedJournal) -> None:
    for key in ("a", "b", "a"):
        stepped.journal.load(key, stepped.leave(key))
    await next_step()
    assert len(stepped.queue.asked) == 1
    stepped.queue.step()
    assert [name for name, _ in stepped.left] == ["a", "a", "b"]


async def test_a_key_is_not_loaded_before_its_changes_are_written(stepped: SteppedJournal) -> None:
    """It would come back as it was before them, and its next turn would undo them."""
    await load(stepped, "a", "b")
    turn(stepped, "b", "1", "other")
    await next_step()
    turn(stepped, "a", "new", "first")
    stepped.journal.drop("a")
    stepped.journal.load("a", stepped.leave("load a"))
    while len(stepped.left) < 3:
        await next_step()
        stepped.queue.step()
    assert stepped.dict.texts["a"] == "new"


async def test_a_load_that_fails_is_tried_again_by_the_next_turn(stepped: SteppedJournal) -> None:
    stepped.queue.errors = [DOWN]
    stepped.journal.load("k", stepped.leave("first"))
    await next_step()
    stepped.queue.step()
    assert (stepped.left, stepped.journal.residents) == ([("first", "UNAVAILABLE")], {})
    stepped.left.clear()
    await load(stepped, "k")


async def test_a_row_that_cannot_be_read_fails_its_key_and_stays(stepped: SteppedJournal) -> None:
    await load(stepped, "k")
    turn(stepped, "k", "unreadable", "write")
    await next_step()
    stepped.queue.step()
    stepped.journal.drop("k")
    stepped.left.clear()
    stepped.journal.load("k", stepped.leave("load"))
    await next_step()
    stepped.queue.step()
    assert (stepped.left, stepped.stored("k")) == ([("load", "INTERNAL")], "unreadable")
    assert stepped.journal.residents == {}


async def test_an_entry_that_cannot_be_encoded_fails_its_turn_and_is_dropped(stepped: SteppedJournal) -> None:
    await load(stepped, "k")
    stepped.dict.texts["k"] = 1  # type: ignore[assignment]
    with pytest.raises(UnwritableValue):
        stepped.journal.end_turn("k", stepped.leave("bad"))
    assert (stepped.dict.texts, stepped.journal.residents) == ({}, {})


async def test_an_entry_that_is_removed_is_removed_from_the_store(stepped: SteppedJournal) -> None:
    await load(stepped, "k")
    turn(stepped, "k", "1", "write")
    await next_step()
    stepped.queue.step()
    del stepped.dict.texts["k"]
    assert stepped.journal.end_turn("k", stepped.leave("remove"))
    await next_step()
    stepped.queue.step()
    assert stepped.stored("k") == ""


async def test_who_waits_for_earlier_turns_goes_on_when_they_are_on_disk_or_fails_with_them(
    stepped: SteppedJournal,
) -> None:
    await load(stepped, "k")
    await stepped.journal.kept("k")
    for error, expected in ((None, None), (DOWN, NotKept)):
        turn(stepped, "k", str(expected), "write")
        waiting = asyncio.ensure_future(stepped.journal.kept("k"))
        await next_step()
        assert not waiting.done()
        stepped.queue.errors = [error]
        stepped.queue.step()
        await asyncio.wait([waiting])
        assert type(waiting.exception()) is (expected or type(None))


async def test_a_key_leaves_once_its_changes_are_on_disk_also_where_a_turn_after_them_was_undone(
    stepped: SteppedJournal,
) -> None:
    await load(stepped, "k")
    turn(stepped, "k", "one", "first")
    await next_step()
    stepped.journal.lose("k")
    assert stepped.journal.keys() == ("k",)
    released = asyncio.ensure_future(stepped.journal.release(["k"]))
    await next_step()
    assert not released.done()
    stepped.queue.step()
    await released
    assert (stepped.left, stepped.stored("k"), stepped.journal.keys()) == ([("first", "")], "one", ())


async def test_a_failure_of_the_store_is_counted_until_it_works_again(stepped: SteppedJournal) -> None:
    await load(stepped, "k")
    metrics = stepped.journal.metrics
    for error, expected in ((DOWN, True), (None, False)):
        if "k" not in stepped.journal.residents:
            stepped.left.clear()
            await load(stepped, "k")
        turn(stepped, "k", str(error), "write")
        await next_step()
        stepped.queue.errors = [error]
        stepped.queue.step()
        assert metrics.is_failing is expected


async def test_a_journal_is_idle_once_everything_is_written(stepped: SteppedJournal) -> None:
    await load(stepped, "k")
    turn(stepped, "k", "1", "write")
    idle = asyncio.ensure_future(stepped.journal.wait_idle())
    await next_step()
    assert not idle.done()
    stepped.queue.step()
    await asyncio.wait_for(idle, BOUND_S)
    assert stepped.queue.store.read(["k"])["k"].rows == (Row("texts", b"1"),)


async def test_an_answer_that_is_too_old_is_not_given(stepped: SteppedJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    await load(stepped, "k")
    stepped.journal.end_turn("k", stepped.leave("first"), [RememberedAnswer("one", b"", b"", at=time())])
    assert stepped.journal.answer_of("k", "one") is not None
    monkeypatch.setattr(journal, "time", lambda: time() + 86_401)
    assert stepped.journal.answer_of("k", "one") is None


async def test_the_keys_that_were_used_least_recently_leave_memory(stepped: SteppedJournal) -> None:
    stepped.journal.max_resident = 2
    stepped.in_turn = set()
    await load(stepped, "a", "b")
    for key in ("b", "a"):
        turn(stepped, key, key, key)
        stepped.journal.turn_over(key)
    await next_step()
    stepped.queue.step()
    stepped.left.clear()
    await load(stepped, "c")
    assert [*stepped.journal.residents] == ["a", "c"]
    assert stepped.dict.texts == {"a": "a"}


async def test_a_key_with_a_turn_or_with_changes_that_are_not_on_disk_stays_in_memory(stepped: SteppedJournal) -> None:
    stepped.journal.max_resident = 1
    await load(stepped, "dirty")
    turn(stepped, "dirty", "new", "write")
    load_in_turn(stepped, "held")
    load_in_turn(stepped, "next")
    assert [*stepped.journal.residents] == ["dirty", "held", "next"]


def load_in_turn(stepped: SteppedJournal, key: str) -> None:
    """As the first turn of a key loads it: before the changes that are to be written."""
    stepped.in_turn.add(key)
    stepped.journal.load(key, lambda _: None)
    stepped.journal._read()
    stepped.queue.step()


async def until_done(stepped: SteppedJournal, waiting: "asyncio.Future[Any]") -> Any:
    async with asyncio.timeout(BOUND_S):
        while not waiting.done():
            await next_step()
            if stepped.queue.asked:
                stepped.queue.step()
    return waiting.result()


async def test_a_reminder_that_is_set_and_dropped_before_a_commit_begins_is_not_written(
    stepped: SteppedJournal,
) -> None:
    await load(stepped, "k")
    resident = stepped.journal.residents["k"]
    for reminders in ({"a": StoredReminder("a", 1.0, b"")}, dict[str, StoredReminder]()):
        resident.reminders = reminders
        assert stepped.journal.end_turn("k", stepped.leave("turn"))
    await next_step()
    stepped.queue.step()
    assert stepped.queue.store.read(["k"])["k"].reminders == ()
