"""Reminders run when they are due: at least once, and once as far as durable state goes. Time is a manual clock."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from onelane.shard import reminder_runs
from onelane.state.memory_store import MemoryStore
from onelane.state.reminder import FIRST_RETRY_S, Reminder
from onelane.state.store import KeyWrite, StoredReminder, StoreOptions

from tests.bounds import BOUND_S
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.shard.reminded import RUN, RemindedCluster, reminded_cluster

NOT_FOUND = grpc.StatusCode.NOT_FOUND
KEYS = [f"k{number}" for number in range(12)]


@pytest.fixture
async def reminded() -> AsyncIterator[RemindedCluster]:
    async with reminded_cluster() as cluster:
        yield cluster


async def count_of_all(reminded: RemindedCluster) -> dict[str, int]:
    return {key: await reminded.count_of(key) for key in KEYS}


async def test_what_became_due_while_nothing_ran_runs_at_start_in_order(reminded: RemindedCluster) -> None:
    for key, seconds in (("a", 30), ("b", 10), ("c", 20), ("d", 900)):
        await reminded.do(key, f"set {key} {seconds} - x")
    await reminded.cluster.kill(0)
    await reminded.cluster.advance(60)
    await reminded.cluster.restart(0)
    assert await reminded.ran(3) == ["bx", "cx", "ax"]
    await reminded.settle()
    assert len(reminded.began) == 3


async def test_a_periodic_reminder_does_not_drift(reminded: RemindedCluster) -> None:
    shard = reminded.service().shard
    first = await shard.remind("k", RUN, EchoRequest(key="k"), after_s=5, every_s=10)
    for count in (1, 2, 3):
        await reminded.cluster.advance(10)
        await reminded.ran(count)
        await reminded.settle()
        (following,) = await shard.reminders("k")
        assert following.due_at == first.due_at + 10 * count
    assert len(set(reminded.service().ids)) == 3


async def test_periods_that_have_passed_are_one_run(reminded: RemindedCluster) -> None:
    first = await reminded.service().shard.remind("k", RUN, EchoRequest(key="k"), every_s=10)
    await reminded.cluster.kill(0)
    # At once, as no shard is there whose timers could become due meanwhile.
    reminded.cluster.clock.jump(1005)
    await reminded.cluster.restart(0)
    await reminded.ran(1)
    await reminded.settle()
    assert len(reminded.began) == 1
    (following,) = await reminded.service().shard.reminders("k")
    assert following.due_at == first.due_at + 1000
    assert await reminded.cluster.stats("onelane.reminder.skips") == 99


async def test_a_failed_run_is_undone_and_repeated_after_a_back_off_with_the_same_id(reminded: RemindedCluster) -> None:
    reminded.service().failing = NOT_FOUND
    await reminded.do("k", "set k 1 - a")
    await reminded.cluster.advance(1)
    await reminded.ran(1)
    await reminded.settle()
    assert len(reminded.began) == 1
    reminded.service().failing = None
    await reminded.cluster.advance(FIRST_RETRY_S)
    await reminded.ran(2)
    await reminded.settle()
    assert len(set(reminded.service().ids)) == 1
    assert (await reminded.do("k", "list k")).text == ""
    assert await reminded.count_of("k") == 1
    assert await reminded.cluster.stats("onelane.reminder.failures") == 1
    assert await reminded.cluster.stats("onelane.reminder.failures", {"onelane.reason": "status"}) == 1


async def test_the_back_off_outlives_the_process(reminded: RemindedCluster) -> None:
    reminded.service().failing = NOT_FOUND
    await reminded.do("k", "set k 1 - a")
    await reminded.cluster.advance(1)
    await reminded.ran(1)
    await reminded.settle()
    await reminded.cluster.crash(0)
    (reminder,) = await reminded.service().shard.reminders("k")
    assert (reminder.failures, reminder.retry_at > reminder.due_at) == (1, True)


async def test_a_run_that_always_fails_is_given_up_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with reminded_cluster(max_reminder_runs=3) as reminded:
        reminded.service().failing = NOT_FOUND
        await reminded.do("k", "set k 1 - a")
        for count in (1, 2, 3):
            await reminded.cluster.advance(4)
            await reminded.ran(count)
            await reminded.settle()
        await reminded.cluster.advance(100)
        await reminded.settle()
        assert len(reminded.began) == 3
        assert (await reminded.do("k", "list k")).text == ""
        assert "reminder.given_up shard=app-0 method=echo.v1.Echo/Unary id=a status=NOT_FOUND runs=3" in caplog.text


async def test_a_periodic_run_that_fails_is_repeated_until_the_next_period(reminded: RemindedCluster) -> None:
    reminded.service().failing = NOT_FOUND
    first = await reminded.service().shard.remind("k", RUN, EchoRequest(key="k"), every_s=2)
    for count in (1, 2):
        await reminded.cluster.advance(2 if count == 1 else FIRST_RETRY_S)
        await reminded.ran(count)
        await reminded.settle()
    (following,) = await reminded.service().shard.reminders("k")
    assert (following.due_at, following.failures) == (first.due_at + 2, 0)


async def test_a_run_and_its_reminder_are_one_commit_so_a_failed_one_has_not_happened(
    reminded: RemindedCluster,
) -> None:
    await reminded.do("k", "set k 1 - a")
    with reminded.store.fails("commit"):
        await reminded.cluster.advance(1)
        await reminded.ran(1)
        await reminded.settle()
        assert await reminded.cluster.stats("onelane.reminder.failures", {"onelane.reason": "not_kept"}) == 1
    await reminded.cluster.advance(reminder_runs.PAUSE_S)
    await reminded.ran(2)
    await reminded.settle()
    assert await reminded.count_of("k") == 1
    assert len(set(reminded.service().ids)) == 1


async def test_a_crash_between_run_and_commit_leaves_the_run_to_the_next_life(reminded: RemindedCluster) -> None:
    await reminded.do("k", "set k 1 - a")
    reminded.service().may_end.clear()
    await reminded.cluster.advance(1)
    await reminded.ran(1)
    await reminded.cluster.crash(0)
    assert await reminded.ran(1) == ["ka"]
    await reminded.settle()
    assert await reminded.count_of("k") == 1
    assert (await reminded.do("k", "list k")).text == ""


async def test_a_run_that_is_cut_off_by_a_stop_is_undone_and_made_again(reminded: RemindedCluster) -> None:
    await reminded.do("k", "set k 1 - a")
    reminded.service().may_end.clear()
    await reminded.cluster.advance(1)
    await reminded.ran(1)
    await reminded.cluster._shards(None)[0].end()
    await reminded.cluster.restart(0)
    assert await reminded.ran(1) == ["ka"]
    await reminded.settle()
    assert await reminded.count_of("k") == 1


async def test_a_shard_that_drains_begins_no_run(reminded: RemindedCluster) -> None:
    await reminded.do("k", "set k 1 - a")
    service = reminded.service()
    reminded.cluster._shards(None)[0].lifecycle.parts.lane.begin_drain()
    await reminded.cluster.advance(5)
    await reminded.settle()
    assert service.began == []


async def test_a_reminder_that_cannot_be_read_is_logged_and_left_alone(
    reminded: RemindedCluster, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore(StoreOptions("app", "app-0", 1, reminded.cluster._folder / "state"))
    store.commit([KeyWrite("k", 1, reminders=(StoredReminder("odd", 1.0, b"newer"),))], at=0)
    await reminded.cluster.crash(0)
    await reminded.do("other", "set other 1 - a")
    await reminded.cluster.advance(2)
    assert await reminded.ran(1) == ["othera"]
    text = "reminder.unreadable shard=app-0 error=the reminder 'odd' of the key 'k' cannot be read"
    await reminded.until(lambda: text in caplog.text)
    assert [reminder.id for reminder in store.read(["k"])["k"].reminders] == ["odd"]


async def test_a_method_may_set_its_own_reminder_anew(reminded: RemindedCluster) -> None:
    shard = reminded.service().shard
    await shard.remind("k", RUN, EchoRequest(key="k", order="set k 50 - a"), after_s=1, id="a")
    await reminded.cluster.advance(1)
    await reminded.ran(1)
    await reminded.settle()
    (reminder,) = await shard.reminders("k")
    assert reminder.due_at > reminded.cluster.clock.now() + 45


async def test_a_reminder_that_is_forgotten_while_its_run_waits_does_not_run(reminded: RemindedCluster) -> None:
    shard = reminded.service().shard
    await reminded.do("k", "set k 1 - a")
    async with shard.turn("k"):
        await reminded.cluster.advance(1)
        await reminded.settle()
        await shard.forget_reminder("k", "a")
    await reminded.settle()
    assert reminded.began == []


async def test_a_bounded_number_runs_at_once(reminded: RemindedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reminder_runs, "MAX_RUNS", 2)
    for key in KEYS:
        await reminded.do(key, f"set {key} 1 - x")
    reminded.service().may_end.clear()
    await reminded.cluster.advance(1)
    await reminded.ran(2)
    await reminded.settle()
    assert len(reminded.began) == 2
    reminded.service().may_end.set()
    await reminded.ran(len(KEYS))
    await reminded.settle()
    assert await count_of_all(reminded) == dict.fromkeys(KEYS, 1)


async def test_more_than_a_page_is_due_and_all_run_in_order(
    reminded: RemindedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reminder_runs, "PAGE", 3)
    monkeypatch.setattr(reminder_runs, "MAX_RUNS", 1)
    for number, key in enumerate(KEYS):
        await reminded.do(key, f"set {key} {100 - number} - x")
    await reminded.cluster.kill(0)
    await reminded.cluster.advance(200)
    await reminded.cluster.restart(0)
    assert await reminded.ran(len(KEYS)) == [f"{key}x" for key in reversed(KEYS)]


async def test_what_was_read_before_keys_have_arrived_does_not_hide_theirs(
    reminded: RemindedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reminder_runs, "PAGE", 2)
    for number, key in enumerate(KEYS[:4]):
        await reminded.do(key, f"set {key} {10 + number} - x")
    await reminded.cluster.kill(0)
    await reminded.cluster.advance(20)
    await reminded.cluster.restart(0)
    await reminded.ran(2)
    reminded.store.may_list.clear()
    lists = reminded.store.lists
    reminders = reminded.cluster._shards(None)[0].lifecycle.parts.reminders
    reminders.placed()
    await reminded.until(lambda: reminded.store.lists > lists)
    arrived = Reminder("z", "a", RUN, EchoRequest(key="z").SerializeToString(), 1.0).stored()
    store = MemoryStore(StoreOptions("app", "app-0", 1, reminded.cluster._folder / "state"))
    store.commit([KeyWrite("z", 1, reminders=(arrived,))], at=0)
    reminders.placed()
    reminded.store.may_list.set()
    await reminded.until(lambda: "z" in reminded.began)


async def test_a_method_that_the_release_has_no_more_fails_and_is_named(
    reminded: RemindedCluster, caplog: pytest.LogCaptureFixture
) -> None:
    await reminded.do("k", "set k 1 - a")
    lane = reminded.cluster._shards(None)[0].lifecycle.parts.lane
    del lane.entries[f"/{RUN}"]
    await reminded.cluster.advance(2)
    text = "reminder.failed shard=app-0 method=echo.v1.Echo/Unary id=a status=UNIMPLEMENTED"
    await reminded.until(lambda: text in caplog.text)


async def test_reminders_run_once_while_shards_come_and_go() -> None:
    async with reminded_cluster(shards=2) as reminded:
        for number, key in enumerate(KEYS):
            await reminded.do(key, f"set {key} {number + 1} - x")
        for shards in (3, 1, 2):
            scaling = asyncio.ensure_future(reminded.cluster.scale(shards))
            await reminded.cluster.advance(4)
            await asyncio.wait_for(scaling, BOUND_S)
        await reminded.cluster.advance(4)
        for _ in range(20):
            await reminded.settle()
            if set((counts := await count_of_all(reminded)).values()) == {1}:
                break
        assert counts == dict.fromkeys(KEYS, 1)


async def test_a_reminder_goes_with_its_key_and_runs_at_the_new_owner_alone() -> None:
    async with reminded_cluster(shards=1) as reminded:
        for key in KEYS:
            await reminded.do(key, f"set {key} 50 - x")
        await asyncio.wait_for(reminded.cluster.scale(2), BOUND_S)
        await reminded.cluster.advance(51)
        await reminded.ran(len(KEYS))
        await reminded.settle()
        for index, service in enumerate(reminded.services):
            owned = {f"{key}x" for key in KEYS if reminded.cluster.owner_of(key) == index}
            assert (set(service.began), len(service.began)) == (owned, len(owned))
