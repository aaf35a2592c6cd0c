"""The deadline of a call is watched where the call goes on after the first step of its handler: not before, and then
also where it has passed meanwhile."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.config import App
from onelane.core.keys import ANY
from onelane.server.call import Call
from onelane.server.listener import Bind, Serving
from onelane.server.methods import Method
from onelane.server.native_listener import NativeListener

from tests.bounds import BOUND_S
from tests.interop.malformed import frame
from tests.interop.raw import Answer, Exchange, request
from tests.ports import reserved

DEADLINE_S = 7_000.0
"""No timer of anything else is as far away."""


class Answering(Serving):
    def __init__(self, address: str) -> None:
        self.address = address
        self.has_begun = asyncio.Event()
        self.release = asyncio.Event()

    def methods(self) -> Sequence[Method]:
        names = ("AtOnce", "Hold", "Block")
        return [Method(f"/t.T/{name}", lambda *_: None, True, False, False, None, None, ANY) for name in names]

    async def serve(self, method: Method, call: Call, request: bytes | None) -> bytes:
        if method.name == "t.T/Block":
            # Beyond its deadline, and then it waits as if it had time.
            remaining = call.time_remaining()
            assert remaining is not None
            time.sleep(remaining + 0.01)  # noqa: ASYNC251 - a stall is what is tested
        if method.name != "t.T/AtOnce":
            self.has_begun.set()
            await self.release.wait()
        return b"answer"


@pytest.fixture
async def delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The delays of the timers of the loop that are far away."""
    loop = asyncio.get_running_loop()
    seen: list[float] = []
    call_later: Callable[..., Any] = loop.call_later

    def noted(delay: float, *rest: Any, **more: Any) -> Any:
        if delay > DEADLINE_S / 2:
            seen.append(delay)
        return call_later(delay, *rest, **more)

    monkeypatch.setattr(loop, "call_later", noted)
    return seen


@pytest.fixture
async def served(delays: list[float]) -> AsyncIterator[tuple[Answering, Any]]:
    listener = NativeListener()
    with reserved() as port:
        address = f"127.0.0.1:{port}"
        serving = Answering(address)
        await listener.start([Bind(address)], serving, App(services=("a:B",), listen=address))
        try:
            async with grpc.aio.insecure_channel(address) as channel:
                yield serving, channel
        finally:
            serving.release.set()
            await listener.stop(1.0)


async def test_a_call_that_ends_with_its_first_step_needs_no_timer(
    served: tuple[Answering, Any], delays: list[float]
) -> None:
    _, channel = served
    for _ in range(3):
        assert await channel.unary_unary("/t.T/AtOnce")(b"", timeout=DEADLINE_S) == b"answer"
    assert delays == []


async def test_a_call_that_waits_has_a_timer(served: tuple[Answering, Any], delays: list[float]) -> None:
    serving, channel = served
    call = channel.unary_unary("/t.T/Hold")(b"", timeout=DEADLINE_S)
    await asyncio.wait_for(serving.has_begun.wait(), BOUND_S)
    assert len(delays) == 1
    serving.release.set()
    assert await call == b"answer"


async def test_a_deadline_that_passes_within_the_first_step_ends_the_call(served: tuple[Answering, Any]) -> None:
    """Its client leaves it to the server: it waits for the answer."""

    def answer_of(address: str) -> Answer:
        with Exchange(address) as exchange:
            exchange.open(request(b"/t.T/Block", (b"grpc-timeout", b"50m")))
            exchange.put(frame(b""), end=True)
            exchange.write()
            return exchange.wait_answered()

    serving, _ = served
    assert (await asyncio.to_thread(answer_of, serving.address)).seen == "200/4"
