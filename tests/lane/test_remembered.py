"""Exactly once: a call with an `idempotency-key` runs once, and its repeats get its answer."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.bounds import BOUND_S
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.lane.counting import READ, WRITE, Counted, counted_cluster, status_of


@pytest.fixture
async def counted() -> AsyncIterator[Counted]:
    async with counted_cluster() as counted:
        yield counted


def send(counted: Counted, name: str, *, method: str = WRITE, key: str = "k", order: str = "", text: str = "") -> Any:
    """A call with an id."""
    request = EchoRequest(key=key, order=order, text=text)
    return getattr(counted.stub, method)(request, metadata=(("idempotency-key", name),), timeout=BOUND_S)


async def trailers_of(call: Any) -> dict[str, str]:
    return dict(await call.trailing_metadata())


async def test_a_repeat_gets_the_answer_of_the_first_and_runs_nothing(counted: Counted) -> None:
    first, second = send(counted, "one"), send(counted, "one")
    assert [(await call).seen for call in (first, second)] == [1, 1]
    assert ["onelane-repeated" in await trailers_of(call) for call in (first, second)] == [False, True]
    assert (await trailers_of(second))["onelane-repeated"] == "1"
    assert (await send(counted, "two")).seen == 2


async def test_a_repeat_gets_the_status_and_the_trailers_of_a_failure(counted: Counted) -> None:
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await send(counted, "one", order="abort")
        assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.NOT_FOUND, "as ordered")
        assert ("x-kept", "no") in tuple(failed.value.trailing_metadata())
    assert await counted.write("k") == 2


async def test_a_repeat_waits_while_the_first_one_runs(counted: Counted) -> None:
    first = asyncio.ensure_future(_reply(send(counted, "one", order="wait", text="first")))
    await counted.began("first")
    second = asyncio.ensure_future(_reply(send(counted, "one", order="wait", text="first")))
    await counted.call(READ, "other", text="beside")
    await counted.began("beside")
    assert not second.done()
    counted.service.may_go["k"].set()
    assert [(await call).seen for call in (first, second)] == [1, 1]


async def test_a_repeat_waits_until_the_first_ones_change_is_on_disk(counted: Counted) -> None:
    await counted.fresh("k", "other")
    with counted.store.held():
        calls = [asyncio.ensure_future(_reply(send(counted, "one"))) for _ in range(2)]
        await counted.committing()
        await counted.call(READ, "other")
        assert [call.done() for call in calls] == [False, False]
    assert [(await call).seen for call in calls] == [2, 2]


async def test_a_call_that_was_not_kept_runs_again(counted: Counted) -> None:
    await counted.fresh("k")
    with counted.store.fails("commit"):
        assert await status_of(asyncio.ensure_future(_reply(send(counted, "one")))) == "UNAVAILABLE"
    assert (await send(counted, "one")).seen == 2


async def test_an_answer_is_remembered_over_the_end_of_the_process(counted: Counted) -> None:
    assert (await send(counted, "one")).seen == 1
    await counted.cluster.crash(0)
    again = send(counted, "one")
    assert ((await again).seen, "onelane-repeated" in await trailers_of(again)) == (1, True)


async def test_an_answer_is_remembered_where_nothing_has_changed(counted: Counted) -> None:
    await counted.fresh("k")
    for repeated in (False, True):
        call = send(counted, "one", method="Plain")
        await call
        assert ("onelane-repeated" in await trailers_of(call)) is repeated


@pytest.mark.parametrize("other", [{"text": "another"}, {"method": "Plain"}], ids=["message", "method"])
async def test_the_id_of_another_request_is_refused(counted: Counted, other: dict[str, str]) -> None:
    await send(counted, "one")
    with pytest.raises(grpc.aio.AioRpcError, match="'one' was used for another request") as refused:
        await send(counted, "one", **other)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await counted.write("k") == 2


async def test_an_id_belongs_to_one_key(counted: Counted) -> None:
    assert [(await send(counted, "one", key=key)).seen for key in ("a", "b")] == [1, 1]
    assert (await send(counted, "two", key="a")).seen == 2


@pytest.mark.parametrize("name", ["", "x" * 256])
async def test_an_id_that_is_empty_or_too_long_is_refused(counted: Counted, name: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=f"is {len(name)} bytes long, expected 1 to 255") as refused:
        await send(counted, name)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await counted.write("k") == 1


async def test_a_read_needs_no_id_and_is_not_remembered(counted: Counted) -> None:
    await counted.fresh("k")
    await send(counted, "one", method=READ)
    await counted.write("k")
    assert (await send(counted, "one", method=READ)).seen == 2


async def test_a_call_that_is_cut_off_is_undone_and_its_repeat_runs(counted: Counted) -> None:
    await counted.fresh("k")
    call = send(counted, "one", order="wait", text="first")
    await counted.began("first")
    call.cancel()
    await counted.call(READ, "k", text="after")
    counted.service.may_go["k"].set()
    assert (await send(counted, "one", order="wait", text="first")).seen == 2


async def test_a_call_that_ends_unavailable_is_undone_and_its_repeat_runs(counted: Counted) -> None:
    """Its status says so. Else one that has met a shard which was down would fail for as long as it is remembered."""
    await counted.fresh("k")
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await send(counted, "one", order="abort UNAVAILABLE", text="ran")
        assert (failed.value.details(), *failed.value.trailing_metadata()) == ("as ordered", ("x-kept", "no"))
    assert counted.service.began == ["ran", "ran"]
    assert await counted.write("k") == 2


async def test_a_call_that_ends_unavailable_waits_for_the_turns_before_which_it_has_seen(counted: Counted) -> None:
    await counted.fresh("k", "other")
    with counted.store.held():
        first = counted.call(WRITE, "k")
        await counted.committing()
        second = asyncio.ensure_future(_reply(send(counted, "one", order="abort UNAVAILABLE", text="second")))
        await counted.began("", "second")
        await counted.call(READ, "other", text="beside")
        assert not second.done()
    assert (await first).seen == 2
    assert await status_of(second) == "UNAVAILABLE"
    assert await counted.write("k") == 3


async def test_the_oldest_answers_of_a_key_are_forgotten_first() -> None:
    async with counted_cluster(max_answers_per_key=2) as counted:
        for name in ("one", "two", "three"):
            await send(counted, name)
        for restarts in range(2):
            assert [(await send(counted, name)).seen for name in ("two", "three")] == [2, 3]
            if not restarts:
                await counted.cluster.crash(0)
        assert (await send(counted, "one")).seen == 4


async def test_an_answer_is_forgotten_in_time() -> None:
    async with counted_cluster(answers_s=1e-6) as counted:
        assert [(await send(counted, "one")).seen for _ in range(2)] == [1, 2]


async def _reply(call: Any) -> EchoReply:
    reply: EchoReply = await call
    return reply
