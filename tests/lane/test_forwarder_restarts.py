"""While a shard restarts, calls that are forwarded to it wait, as those of clients that connect to it do."""

import asyncio
from functools import partial
from pathlib import Path

import grpc
import pytest
from onelane.config import App
from onelane.core.hop import SERVED
from onelane.core.placement import Member
from onelane.lane.forwarder import NativeForwarder
from onelane.server import sockets
from onelane.server.listener import Bind
from onelane.server.native_listener import NativeListener
from onelane.testing.listener import MemoryCall

from tests.servers import Answering

SETTINGS = App(services=("a:B",), listen="127.0.0.1:0")
SPEED = 50
"""How much faster time limits pass."""


async def test_a_forwarded_call_waits_for_its_owner_until_its_own_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeout = asyncio.timeout
    monkeypatch.setattr(asyncio, "timeout", lambda limit_s: timeout(limit_s and limit_s / SPEED))
    owner = Member("b", "127.0.0.1:1002", str(tmp_path / "b"))
    # The supervisor holds it; nobody accepts.
    held = sockets.listening(f"unix:{owner.socket}")
    forwarder, listener = NativeForwarder(), NativeListener()
    call = MemoryCall("/t.T/Echo", (), trusted=False, deadline_s=60.0)
    answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    forwarder.begin(owner, call, b"hi", None, answered.set_result)
    await asyncio.wait([answered], timeout=20 / SPEED)
    assert not answered.done(), "some 20 s have passed"
    await listener.start([Bind(f"unix:{owner.socket}", trusted=True, sock=held.dup())], Answering(), SETTINGS)
    assert (await answered, call.code_now) == (b"hi", grpc.StatusCode.OK)
    await forwarder.aclose()
    await listener.stop(1.0)
    held.close()


@pytest.mark.parametrize("streams", [True, False])
async def test_a_call_that_is_cancelled_while_it_waits_for_its_owner_is_not_sent(tmp_path: Path, streams: bool) -> None:
    owner = Member("b", "127.0.0.1:1002", str(tmp_path / "b"))
    held, forwarder = sockets.listening(f"unix:{owner.socket}"), NativeForwarder()
    call = MemoryCall("/t.T/Echo", (), trusted=False, deadline_s=None)
    if streams:
        carrying = asyncio.ensure_future(forwarder.stream(owner, call, None, None, streams_response=True))
        await asyncio.sleep(0)
        assert len(forwarder._siblings[owner.socket]._waiting) == 1
        carrying.cancel()
        await asyncio.wait([carrying])
    else:
        forwarder.begin(owner, call, b"", None, lambda _: None)
        assert call.cancel_forward is not None
        call.cancel_forward()
    assert not forwarder._siblings[owner.socket]._waiting
    assert SERVED not in dict(call.trailers), "the owner has never seen it, and does not count it"
    await forwarder.aclose()
    held.close()


async def test_a_call_whose_deadline_passes_while_it_waits_for_its_owner_is_counted_as_such(tmp_path: Path) -> None:
    owner = Member("b", "127.0.0.1:1002", str(tmp_path / "b"))
    held, forwarder = sockets.listening(f"unix:{owner.socket}"), NativeForwarder()
    call = MemoryCall("/t.T/Echo", (), trusted=False, deadline_s=0.0)
    forwarder.begin(owner, call, b"", None, lambda _: None)
    # As its listener does once the deadline has passed.
    assert call.cancel_forward is not None
    call.cancel_forward()
    assert call.code_now is grpc.StatusCode.DEADLINE_EXCEEDED
    assert SERVED not in dict(call.trailers), "the owner has never seen it, and does not count it"
    await forwarder.aclose()
    held.close()


async def test_calls_that_wait_for_one_owner_are_bounded(tmp_path: Path) -> None:
    """Or a shard that is down would take all the calls that the others may have in progress."""
    owner = Member("b", "127.0.0.1:1002", str(tmp_path / "b"))
    held, forwarder = sockets.listening(f"unix:{owner.socket}"), NativeForwarder(max_waiting=2)
    calls = [MemoryCall("/t.T/Echo", (), trusted=False, deadline_s=None) for _ in range(3)]
    ended: list[MemoryCall] = []
    for call in calls:
        forwarder.begin(owner, call, b"", None, partial(_add, ended, call))
    assert ended == calls[2:]
    assert ended[0].code_now is grpc.StatusCode.RESOURCE_EXHAUSTED
    await forwarder.aclose()
    held.close()


def _add(calls: list[MemoryCall], call: MemoryCall, reply: bytes) -> None:
    calls.append(call)
