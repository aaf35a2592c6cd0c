"""What is written outside of turns while its key leaves, or later, is lost: it is logged, counted, and never found."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from onelane.core.placement import Member, Placement

from tests.bounds import BOUND_S
from tests.running_app import eventually
from tests.shard.test_handoff import KEYS, Bench, Sibling, bench, close, lost, sibling, tasks_of

__all__ = ["bench", "sibling"]


async def test_what_is_written_before_the_new_owner_has_acknowledged_is_found_and_what_stays_as_sent_is_not(
    bench: Bench, sibling: Sibling, caplog: pytest.LogCaptureFixture
) -> None:
    bench.totals.update({"k": 7, "l": 7})
    sibling.on_batch = lambda: bench.totals.update(k=8) if bench.totals else None
    bench.prepare((bench.me,), (bench.sibling,))
    await eventually(lambda: bench.totals == {})
    assert lost(bench) == {"outside_turn": 1}
    assert "keyed 'totals', key 'k': written outside of a turn" in caplog.text
    await close(bench)


async def test_what_is_written_after_the_key_has_left_is_dropped_when_the_change_is_over(
    bench: Bench, sibling: Sibling
) -> None:
    after = Placement(2, (bench.sibling,))
    bench.prepare((bench.me,), after.members)
    await eventually(lambda: bool(sibling.requests) and sibling.requests[-1].done)
    bench.totals["k"] = 8
    bench.parts.handoff.placed(after)
    bench.parts.lane.place(after)
    await eventually(lambda: bench.totals == {})
    assert lost(bench) == {"outside_turn": 1}
    await close(bench)


async def test_what_was_left_behind_is_not_handed_over_in_the_next_change(
    bench: Bench, sibling: Sibling, tmp_path: Path
) -> None:
    """Its owner would refuse it again and again, until this process is killed for it."""
    both = (bench.me, bench.sibling)
    after = Placement(2, (*both, Member("echo-2", "127.0.0.1:50063", f"{tmp_path}/echo-2", 7)))
    before = Placement(1, both)
    key = next(k for k in KEYS if before.owner_of(k) == after.owner_of(k) == bench.sibling)
    bench.totals[key] = 8
    bench.prepare(both, after.members)
    await eventually(lambda: bool(sibling.requests) and sibling.requests[-1].done)
    assert (sibling.keys, bench.totals, lost(bench)) == ([], {}, {"outside_turn": 1})
    await close(bench)


async def test_a_key_that_arrives_has_the_state_that_came_and_nothing_beside_it(bench: Bench) -> None:
    counts = bench.parts.shard.keyed("counts", int)
    counts["k"] = bench.totals["k"] = 1
    bench.prepare((bench.sibling,), (bench.me,))
    await asyncio.sleep(0)
    await bench.parts.handoff.hand_over(bench.take("k"))
    assert (bench.totals, counts) == ({"k": 7}, {})
    assert lost(bench) == {"outside_turn": 2}
    await close(bench)


async def test_an_entry_that_cannot_leave_is_counted_once(bench: Bench, sibling: Sibling) -> None:
    """Its key is looked at when it is packed, when it is acknowledged, and when the change is over."""
    entries: Any = bench.totals
    entries.update({"bad": "no number", "good": 7, 1.5: 1})
    after = Placement(2, (bench.sibling,))
    bench.prepare((bench.me,), after.members)
    await eventually(lambda: entries == {1.5: 1})
    bench.parts.lane.place(after)
    bench.parts.handoff.placed(after)
    await asyncio.wait(tasks_of("StrayEntries.sweep"), timeout=BOUND_S)
    assert lost(bench) == {"unwritable": 1, "no_key": 1}
    await close(bench)


async def test_each_entry_that_was_written_meanwhile_is_counted(bench: Bench, sibling: Sibling) -> None:
    """A dict has an entry for each spelling of a key."""
    entries: Any = bench.totals
    entries.update({"7": 1, 7: 1, b"7": 1})
    sibling.on_batch = lambda: entries.update({"7": 2, 7: 2}) if entries else None
    bench.prepare((bench.me,), (bench.sibling,))
    await eventually(lambda: entries == {})
    assert lost(bench) == {"outside_turn": 2}
    await close(bench)
