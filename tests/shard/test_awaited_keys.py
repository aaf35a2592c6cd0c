"""The old owner of a key is asked for it once a call of it is held here, and once."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from onelane.core.handoff import Handoff
from onelane.core.placement import Member, Placement
from onelane.lane.arrivals import Arrivals
from onelane.shard import awaited_keys
from onelane.shard.awaited_keys import AwaitedKeys
from onelane.shard.siblings import SiblingChannels
from onelane.v1.siblings_pb2 import HurryReply, HurryRequest

from tests.bounds import BOUND_S
from tests.running_app import eventually

ME = Member("a", "127.0.0.1:1", "", 1)


class OldOwner:
    """Notes what it is asked for, and fails as it is told to."""

    def __init__(self, socket: Path) -> None:
        self.member = Member("b", "127.0.0.1:2", str(socket), 2)
        self.asked: list[tuple[int, list[str]]] = []
        self.failures: list[grpc.StatusCode] = []

    async def hurry(self, request: HurryRequest, context: Any) -> HurryReply:
        self.asked.append((request.epoch, list(request.keys)))
        if self.failures:
            await context.abort(self.failures.pop(), "not now")
        return HurryReply()


@pytest.fixture
async def old_owner(tmp_path: Path) -> AsyncIterator[OldOwner]:
    owner = OldOwner(tmp_path / "b")
    handler = grpc.unary_unary_rpc_method_handler(owner.hurry, HurryRequest.FromString, HurryReply.SerializeToString)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("onelane.v1.Siblings", {"Hurry": handler}),))
    server.add_insecure_port(f"unix:{owner.member.socket}")
    await server.start()
    yield owner
    await server.stop(0)


class Asking:
    """The change in which all keys of `b` come to `a`, and the task that asks."""

    def __init__(self, owner: OldOwner) -> None:
        self.change = Handoff(ME, Placement(4, (owner.member,)), Placement(5, (ME,)))
        self.arrivals = Arrivals(release=lambda _: None)
        self.channels = SiblingChannels()
        self.is_over = False
        ask = AwaitedKeys(self.arrivals, self.channels).ask(self.change, is_over=lambda: self.is_over)
        self.task = asyncio.create_task(ask)

    async def aclose(self) -> None:
        await asyncio.wait_for(self.task, BOUND_S)
        await self.channels.aclose()


async def test_the_old_owner_is_asked_once_for_each_key_whose_calls_are_held(old_owner: OldOwner) -> None:
    asking = Asking(old_owner)
    for waiter, key in enumerate("kkl"):
        asking.arrivals.hold_for_key(key, waiter)
    await eventually(lambda: old_owner.asked)
    asking.arrivals.hold_for_key("k", 3)
    asking.arrivals.hold_for_key("m", 4)
    await eventually(lambda: len(old_owner.asked) == 2)
    assert old_owner.asked == [(5, ["k", "l"]), (5, ["m"])]
    asking.change.done(old_owner.member.life, ME.life)
    await asking.aclose()


async def test_it_is_asked_again_where_that_has_failed_but_not_where_it_does_not_know_how(old_owner: OldOwner) -> None:
    old_owner.failures = [grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE]
    asking = Asking(old_owner)
    asking.arrivals.hold_for_key("k", 0)
    await eventually(lambda: len(old_owner.asked) == 2)
    asking.arrivals.hold_for_key("l", 1)
    await eventually(lambda: len(old_owner.asked) == 3)
    assert old_owner.asked == [(5, ["k"]), (5, ["k"]), (5, ["l"])]
    asking.is_over = True
    await asking.aclose()


async def test_nobody_is_asked_for_what_has_come_or_was_never_another_ones(
    old_owner: OldOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(awaited_keys, "KEYS_ASKED", 1)
    asking = Asking(old_owner)
    asking.change.moved(old_owner.member.life, ME.life, ["here", "coming"])
    asking.change.installed(["here"])
    for key in ("here", "coming", "awaited", "awaited as well"):
        asking.arrivals.hold_for_key(key, key)
    await eventually(lambda: len(old_owner.asked) == 2)
    assert old_owner.asked == [(5, ["awaited"]), (5, ["awaited as well"])]
    asking.is_over = True
    await asking.aclose()
