"""Two releases side by side: one whose siblings speak HTTP/2 alone, and one that offers the link."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from onelane.config import App
from onelane.core.placement import Member
from onelane.lane.forwarder import SIBLING_DIALLING, NativeForwarder
from onelane.server.listener import Bind
from onelane.server.native_listener import NativeListener
from onelane.testing.listener import MemoryCall
from onelane.wire.link_client import LinkClient

from tests.bounds import BOUND_S
from tests.servers import Answering

SETTINGS = App(services=("a:B",), listen="127.0.0.1:0")


@asynccontextmanager
async def serving(owner: Member, *, has_link: bool) -> AsyncIterator[None]:
    """A shard of either release. Without the link it speaks HTTP/2 on its socket, as to any client."""
    listener = NativeListener()
    await listener.start([Bind(f"unix:{owner.socket}", trusted=has_link)], Answering(), SETTINGS)
    try:
        yield
    finally:
        await listener.stop(1.0)


async def forward(forwarder: NativeForwarder, owner: Member, request: bytes) -> tuple[bytes, grpc.StatusCode]:
    call = MemoryCall("/t.T/Echo", (), trusted=False, deadline_s=20.0)
    answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    forwarder.begin(owner, call, request, None, answered.set_result)
    return await asyncio.wait_for(answered, BOUND_S), call.code_now


def uses_link(forwarder: NativeForwarder, owner: Member) -> bool:
    (connection,) = forwarder._siblings[owner.socket]._connections
    return isinstance(connection.wire, LinkClient)


@pytest.mark.parametrize("offers", [True, False], ids=["offers the link", "has no link"])
@pytest.mark.parametrize("has_link", [True, False], ids=["to one with it", "to one without"])
async def test_a_call_passes_between_two_releases_and_over_the_link_where_both_have_it(
    tmp_path: Path, offers: bool, has_link: bool
) -> None:
    owner, forwarder = Member("b", "127.0.0.1:1002", str(tmp_path / "b")), NativeForwarder()
    forwarder._dialling = replace(SIBLING_DIALLING, offers_link=offers)
    async with serving(owner, has_link=has_link):
        for request in (b"hi", b"x" * 100_000):
            assert await forward(forwarder, owner, request) == (request, grpc.StatusCode.OK)
        assert uses_link(forwarder, owner) == (offers and has_link)
    await forwarder.aclose()


async def test_a_sibling_that_is_replaced_by_another_release_is_asked_anew(tmp_path: Path) -> None:
    owner, forwarder = Member("b", "127.0.0.1:1002", str(tmp_path / "b")), NativeForwarder()
    for has_link in (True, False, True):
        async with serving(owner, has_link=has_link):
            assert await forward(forwarder, owner, b"hi") == (b"hi", grpc.StatusCode.OK)
            assert uses_link(forwarder, owner) == has_link
    await forwarder.aclose()
