"""What a service is given: state, stubs, settings, turns and resources of its own shard."""

import asyncio
from collections.abc import AsyncIterator
from contextvars import Context
from typing import Any

import pytest
from onelane.core.context import current_call
from onelane.core.placement import Member, Placement
from onelane.errors import BadService, ForeignKey
from onelane.shard.wiring import ShardParts

from tests.echo.v1 import echo_pb2_grpc
from tests.shard.parts import setup, wired

SELF = Member("echo-0", "127.0.0.1:50061", "/nowhere/echo-0")
OTHER = Member("echo-1", "127.0.0.1:50062", "/nowhere/echo-1")


@pytest.fixture
async def parts() -> AsyncIterator[ShardParts]:
    described = setup()
    described.peers["profile"] = "127.0.0.1:1"
    shard_parts, _ = wired(described)
    yield shard_parts
    await shard_parts.shard.aclose()


async def test_every_resource_is_closed_whatever_becomes_of_the_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shard, closed = wired()[0].shard, list[str]()
    broken, other = (
        shard.offload(lambda: None, name="broken"),
        shard.offload(lambda: closed.append("made"), name="other"),
    )

    async def fail() -> None:
        await type(broken).aclose(broken)
        raise OSError("disk full")

    async def close() -> None:
        await type(other).aclose(other)
        closed.append("closed")

    monkeypatch.setattr(broken, "aclose", fail)
    monkeypatch.setattr(other, "aclose", close)
    await shard.aclose()
    assert closed == ["made", "closed"]
    assert "shard.part_not_ended shard=echo-0" in caplog.text


def test_there_is_one_keyed_dict_for_each_name_and_its_size_is_reported() -> None:
    shard = wired()[0].shard
    shard.keyed("carts", list)["ada"] = []
    assert shard.keyed("carts", list) is shard.keyed("carts", list)
    assert shard.keyed("carts", list) is not shard.keyed("orders", list)
    assert shard.keyed_counts() == {"carts": 1, "orders": 0}


def test_a_kind_that_cannot_move_is_refused_and_may_stay() -> None:
    shard = wired()[0].shard
    with pytest.raises(BadService, match=r"keyed 'queues': cannot be encoded: asyncio.queues.Queue\. .*moves=False"):
        shard.keyed("queues", asyncio.Queue)
    queues: dict[str, asyncio.Queue[int]] = shard.keyed("queues", asyncio.Queue, moves=False)
    assert queues == {}


def test_keys_that_leave_and_arrive_are_heard_of() -> None:
    shard, keys = wired()[0].shard, list[Any]()
    shard.on_leave(keys.append)
    shard.on_arrive(keys.append)
    shard.keyed("carts", list)[7] = []
    shard.keyed_dicts.leaves("7")
    shard.keyed_dicts.arrived("7")
    assert keys == [7, 7]


@pytest.mark.parametrize("error", [ValueError, SystemExit, BaseException])
def test_a_follower_of_settings_that_raises_is_logged_and_the_others_are_called(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    shard = wired()[0].shard
    changes: list[Any] = []

    def fail(old: Any, new: Any) -> None:
        raise error("cannot follow")

    shard.on_config(fail)
    shard.on_config(lambda old, new: changes.append(new))
    shard.configure({"limit": 2})
    assert (shard.config, changes) == ({"limit": 2}, [{"limit": 2}])
    assert "config.follower_failed shard=echo-0" in caplog.text


async def test_stubs_of_one_app_share_a_channel_and_an_unknown_app_is_refused(parts: ShardParts) -> None:
    channels: list[Any] = []
    parts.shard.stub(channels.append, to="profile")
    parts.shard.stub(channels.append, to="profile")
    assert channels[0] is channels[1]
    with pytest.raises(BadService, match=r"no app or peer is called 'lobby'; known are \['profile'\]"):
        parts.shard.stub(echo_pb2_grpc.EchoStub, to="lobby")


async def test_a_turn_is_had_by_one_at_a_time_and_is_part_of_the_chain_meanwhile(parts: ShardParts) -> None:
    order: list[str] = []

    async def use(name: str) -> None:
        async with parts.shard.turn("k"):
            context = current_call()
            assert context is not None
            assert context.outgoing_chain.endswith("@echo-0/shard.turn")
            order.append(f"{name} begins")
            await asyncio.sleep(0)
            order.append(f"{name} ends")
        assert current_call() is None

    # Contexts of their own: outside of any call.
    await asyncio.gather(*(asyncio.create_task(use(name), context=Context()) for name in ("first", "second")))
    assert order == ["first begins", "first ends", "second begins", "second ends"]


async def test_turns_and_timers_are_for_keys_that_live_here(parts: ShardParts) -> None:
    parts.lane.place(Placement(7, (SELF, OTHER)))
    away = next(key for key in map(str, range(99)) if parts.lane.placement.owner_of(key) is OTHER)
    with pytest.raises(ForeignKey):
        parts.shard.later(away, 1.0, lambda: None)
    with pytest.raises(ForeignKey):
        async with parts.shard.turn(away):
            pytest.fail("another shard owns the key")


async def test_a_shard_is_ready_once_every_resource_is_and_closes_them_at_its_end(parts: ShardParts) -> None:
    class Resource:
        is_closed = False

        def close(self) -> None:
            self.is_closed = True

    resource = Resource()
    parts.shard.offload(lambda: resource, name="db")
    await parts.shard.wait_ready()
    await parts.shard.aclose()
    assert resource.is_closed


async def test_a_resource_that_cannot_be_made_fails_the_start(parts: ShardParts) -> None:
    def fail() -> None:
        raise OSError("disk full")

    parts.shard.offload(fail, name="db")
    with pytest.raises(OSError, match="disk full"):
        await parts.shard.wait_ready()
