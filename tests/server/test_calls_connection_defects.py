"""An error of the runtime itself, in one event of a connection, ends one call; the connection and the others go on."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.config import App
from onelane.core.keys import ANY
from onelane.server.call import Call
from onelane.server.listener import Bind, Serving, Work
from onelane.server.methods import Method
from onelane.server.native_listener import NativeListener

from tests.bounds import BOUND_S
from tests.ports import reserved


class Defective(Serving):
    """A lane with a defect for each method, and one that holds its calls."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.has_begun = asyncio.Event()

    def methods(self) -> Sequence[Method]:
        names = ("ArriveRaises", "AnswersText", "Hold")
        return [Method(f"/t.T/{name}", lambda *_: None, True, False, False, None, None, ANY) for name in names]

    def arrive(self, method: Method, call: Call, request: bytes | None) -> Work:
        if method.name == "t.T/ArriveRaises":
            raise ValueError("a defect")
        return super().arrive(method, call, request)

    async def serve(self, method: Method, call: Call, request: bytes | None) -> bytes:
        if method.name == "t.T/AnswersText":
            return "text"  # type: ignore[return-value]
        self.has_begun.set()
        await self.release.wait()
        return b"held"


class Raising(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise ValueError("the log cannot be written")


@pytest.mark.parametrize("method", ["ArriveRaises", "AnswersText"])
@pytest.mark.parametrize("logs", ["", "the log raises as well"])
async def test_a_defect_ends_its_own_call(method: str, logs: str, caplog: pytest.LogCaptureFixture) -> None:
    listener, serving, handler = NativeListener(), Defective(), Raising()
    if logs:
        logging.getLogger("onelane").addHandler(handler)
    with reserved() as port:
        address = f"127.0.0.1:{port}"
        await listener.start([Bind(address)], serving, App(services=("a:B",), listen=address))
        try:
            async with grpc.aio.insecure_channel(address) as channel:
                send: Any = channel.unary_unary
                beside = send("/t.T/Hold")(b"", timeout=BOUND_S)
                await serving.has_begun.wait()
                call = send(f"/t.T/{method}")(b"", timeout=BOUND_S)
                assert await call.code() is grpc.StatusCode.INTERNAL
                serving.release.set()
                assert await beside == b"held"
        finally:
            logging.getLogger("onelane").removeHandler(handler)
            await listener.stop(1.0)
    assert logs or "Error" in caplog.text
