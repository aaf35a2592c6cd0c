"""Reminders as a service sets, forgets and lists them."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import grpc.aio
import onelane
import pytest
from onelane.errors import BadService, Misuse, TooManyReminders
from onelane.testing import Cluster
from onelane.v1.siblings_pb2 import RemindReply, RemindRequest
from onelane.v1.siblings_pb2_grpc import SiblingsStub

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.shard.reminded import RUN, RemindedCluster, reminded_cluster
from tests.state.held_store import HeldStore


@pytest.fixture
async def reminded() -> AsyncIterator[RemindedCluster]:
    async with reminded_cluster() as cluster:
        yield cluster


async def test_a_reminder_runs_when_it_is_due_and_once(reminded: RemindedCluster) -> None:
    await reminded.do("k", "set k 30 - a")
    await reminded.cluster.advance(29)
    await reminded.settle()
    assert reminded.began == []
    await reminded.cluster.advance(1)
    assert await reminded.ran(1) == ["ka"]
    await reminded.cluster.advance(60)
    await reminded.settle()
    assert reminded.began == ["ka"]
    assert (await reminded.do("k", "list k")).text == ""


async def test_what_a_turn_sets_takes_effect_with_the_turn(reminded: RemindedCluster) -> None:
    with reminded.store.fails("commit"), pytest.raises(grpc.aio.AioRpcError):
        await reminded.do("k", "set k 1 - a")
    assert (await reminded.do("k", "list k")).text == ""
    await reminded.cluster.advance(5)
    await reminded.settle()
    assert reminded.began == []


async def test_a_turn_of_the_key_waits_for_no_commit_to_set_one(reminded: RemindedCluster) -> None:
    with reminded.store.held():
        calls = [asyncio.ensure_future(reminded.do("k", order)) for order in ("set k 50 - a", "set k 60 - b")]
        await reminded.until(lambda: len(reminded.service().ordered) == 2)
        assert not any(call.done() for call in calls)
    assert (await asyncio.gather(*calls))[1].text == "a b"


async def test_a_method_without_side_effects_may_set_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onelane.lane.method_entry.has_no_side_effects", lambda path: path.endswith("Misbehave"))
    async with reminded_cluster() as reminded:
        await reminded.do("k", "set k 50 - a")
        await reminded.cluster.crash(0)
        assert (await reminded.do("k", "list k")).text == "a"


async def test_a_key_that_moves_meanwhile_is_asked_for_at_its_next_owner(
    reminded: RemindedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    reminders = reminded.cluster._shards(None)[0].lifecycle.parts.reminders
    serve, answers = reminders.serve, [RemindReply(is_foreign=True)]

    async def has_left(request: RemindRequest) -> RemindReply:
        return answers.pop() if answers else await serve(request)

    monkeypatch.setattr(reminders, "serve", has_left)
    await reminded.service().shard.remind("k", RUN, EchoRequest(key="k"), after_s=5, id="a")
    assert (await reminded.do("k", "list k")).text == "a"


async def test_a_status_that_is_not_ok_keeps_the_reminder_as_it_keeps_other_changes(reminded: RemindedCluster) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await reminded.do("k", "set k 1 - a", "abort")
    assert (await reminded.do("k", "list k")).text == "a"


async def test_a_reminder_of_another_key_is_on_disk_when_it_is_set(reminded: RemindedCluster) -> None:
    await reminded.do("k", "set other 30 - a")
    assert (await reminded.do("other", "list other")).text == "a"


async def test_a_turn_sets_no_reminder_of_another_key_before_what_it_has_seen_is_on_disk(
    reminded: RemindedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The turn before it fails to be kept, and what is set for the other key would be kept."""
    reminded.stub = reminded.cluster.stub(echo_pb2_grpc.EchoStub, shard=0)  # Without ids: it repeats nothing.
    for key in ("k", "other"):
        await reminded.do(key, f"list {key}")
    check = HeldStore._check_works
    monkeypatch.setattr(HeldStore, "_check_works", lambda store, _: check(store, str(len(reminded.store.commits))))
    with reminded.store.fails("1"), reminded.store.held():
        earlier = asyncio.ensure_future(reminded.do("k", "set k 50 - b"))
        await reminded.until(lambda: reminded.store.commits)
        later = asyncio.ensure_future(reminded.do("k", "set other 30 - a"))
        await reminded.do("other", "list other")
        reminded.store.may_go.set()
        outcomes = await asyncio.gather(earlier, later, return_exceptions=True)
    assert [isinstance(outcome, grpc.aio.AioRpcError) for outcome in outcomes] == [True, True]
    assert (await reminded.do("other", "list other")).text == ""


async def test_a_reminder_of_a_key_of_another_shard_is_set_and_forgotten_there() -> None:
    async with reminded_cluster(shards=2) as reminded:
        keys = {reminded.cluster.owner_of(key): key for key in ("a", "b", "c", "d", "e", "f")}
        here, elsewhere = keys[0], keys[1]
        await reminded.do(here, f"set {elsewhere} 30 - a")
        assert (await reminded.do(here, f"list {elsewhere}")).text == "a"
        assert (await reminded.do(here, f"forget {elsewhere} a")).text == "True"
        assert (await reminded.do(elsewhere, f"list {elsewhere}")).text == ""
        await reminded.do(here, f"set {elsewhere} 30 - a")
        await reminded.cluster.advance(31)
        await reminded.ran(1)
        assert reminded.service(1).began == [f"{elsewhere}a"]


async def test_a_forgotten_reminder_does_not_run(reminded: RemindedCluster) -> None:
    await reminded.do("k", "set k 5 - a")
    assert (await reminded.do("k", "forget k a")).text == "True"
    assert (await reminded.do("k", "forget k a")).text == "False"
    await reminded.cluster.advance(10)
    await reminded.settle()
    assert reminded.began == []


async def test_a_reminder_takes_the_place_of_an_earlier_one_with_its_id(reminded: RemindedCluster) -> None:
    await reminded.do("k", "set k 5 - a")
    await reminded.do("k", "set k 50 - a")
    await reminded.cluster.advance(10)
    await reminded.settle()
    assert reminded.began == []
    await reminded.cluster.advance(41)
    assert await reminded.ran(1) == ["ka"]


class TestBadInput:
    """Each has an error that names the thing, and changes nothing."""

    async def refused(self, reminded: RemindedCluster, error: type[Exception], match: str, **changed: Any) -> None:
        values: dict[str, Any] = {"key": "k", "method": RUN, "request": EchoRequest(key="k"), "after_s": 5.0} | changed
        key, method, request = (values.pop(name) for name in ("key", "method", "request"))
        shard = reminded.service().shard
        with pytest.raises(error, match=match):
            await shard.remind(key, method, request, **values)
        assert await shard.reminders("k") == ()

    @pytest.mark.parametrize(
        ("error", "match", "changed"),
        [
            (Misuse, "at is .* s in the past", {"at": 999_999.0, "after_s": None}),
            (Misuse, "at is .* s in the past", {"at": float("nan"), "after_s": None}),
            (Misuse, "no time zone", {"at": datetime(2999, 1, 1), "after_s": None}),
            (Misuse, "expected one of them", {"at": 2_000_000.0}),
            (Misuse, "expected at, after_s or every_s", {"after_s": None}),
            (Misuse, "after_s is -1", {"after_s": -1}),
            (Misuse, "every_s is 0.5, expected 1 s or more", {"every_s": 0.5}),
            (Misuse, "every_s is inf", {"every_s": float("inf")}),
            (BadService, "no service of this app has the method 'echo.v1.Echo/No'", {"method": "echo.v1.Echo/No"}),
            (BadService, "streaming", {"method": "echo.v1.Echo/Download"}),
            (BadService, "Who has no key", {"method": "echo.v1.Echo/Who"}),
            (Misuse, "the key for echo.v1.Echo/Unary is 'other'", {"key": "other"}),
            (Misuse, "is empty", {"key": ""}),
            (Misuse, "takes a message echo.v1.EchoRequest, not EchoReply", {"request": EchoReply()}),
            (Misuse, "expected at most 65536", {"request": EchoRequest(key="k", text="x" * 70_000)}),
            (Misuse, "expected a text of 1 to 255 bytes", {"id": "x" * 256}),
        ],
    )
    async def test_it_is_refused(
        self, reminded: RemindedCluster, error: type[Exception], match: str, changed: dict[str, Any]
    ) -> None:
        await self.refused(reminded, error, match, **changed)

    async def test_a_key_has_a_bounded_number(self) -> None:
        async with reminded_cluster(max_reminders_per_key=2) as reminded:
            shard = reminded.service().shard
            for name in ("a", "b", "a"):
                await shard.remind("k", RUN, EchoRequest(key="k"), after_s=5, id=name)
            with pytest.raises(TooManyReminders, match="the key 'k' has 2 reminders already: max_reminders_per_key"):
                await shard.remind("k", RUN, EchoRequest(key="k"), after_s=5, id="c")
            assert [reminder.id for reminder in await shard.reminders("k")] == ["a", "b"]

    async def test_only_siblings_may_change_reminders(self, reminded: RemindedCluster) -> None:
        with pytest.raises(grpc.aio.AioRpcError, match="only the shards of this app"):
            await reminded.cluster.stub(SiblingsStub, shard=0).Remind(RemindRequest(key="k"), timeout=BOUND_S)


async def test_a_time_may_be_a_datetime_with_a_time_zone(reminded: RemindedCluster) -> None:
    now = datetime.fromtimestamp(reminded.cluster.clock.wall_ns() / 1e9).astimezone()
    shard = reminded.service().shard
    reminder = await shard.remind("k", RUN, EchoRequest(key="k"), at=now + timedelta(seconds=30))
    assert (reminder.id, reminder.due_at) == (RUN, (now + timedelta(seconds=30)).timestamp())


class Forgetful(echo_pb2_grpc.EchoServicer):
    """Keeps no state."""

    def __init__(self, shard: onelane.Shard) -> None:
        self.shard = shard

    async def Unary(self, request: EchoRequest, context: Any) -> EchoReply:
        return EchoReply(text=f"{await self.shard.remind(request.key, RUN, request, after_s=1)}")


async def test_an_app_without_a_store_is_told_what_to_do() -> None:
    async with Cluster(Forgetful, shards=1) as cluster:
        kind: Any = Forgetful
        with pytest.raises(BadService, match=r"declare a dict .* or say reminders = true in its \[state\]"):
            await cluster.service(kind, shard=0).shard.remind("k", RUN, EchoRequest(key="k"), after_s=1)


async def test_an_app_without_a_durable_dict_may_ask_for_a_store() -> None:
    async with Cluster(Forgetful, shards=1, settings={"state": {"reminders": True}}) as cluster:
        await cluster.stub(echo_pb2_grpc.EchoStub).Unary(EchoRequest(key="k"), timeout=BOUND_S)
        kind: Any = Forgetful
        (reminder,) = await cluster.service(kind, shard=0).shard.reminders("k")
        assert (reminder.key, reminder.method) == ("k", RUN)
