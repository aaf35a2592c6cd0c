"""What the listener on grpc.aio adds to the contract of `test_listener`."""

from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.core import keys
from onelane.server.call import Call
from onelane.server.grpcio_listener import GrpcioListener
from onelane.server.listener import Bind, Serving
from onelane.server.methods import Method

from tests.server.test_listener import SETTINGS

SHAPES = [(False, False), (False, True), (True, False), (True, True)]


def never_run(request: Any, context: Any) -> None:
    """A lane would run it."""


class Counted(Serving):
    """A method of each shape, and the number of calls that were served."""

    def __init__(self) -> None:
        self.served = 0

    def methods(self) -> list[Method]:
        return [Method(f"/t.T/{up}{down}", never_run, True, up, down, None, None, keys.ANY) for up, down in SHAPES]

    async def serve(self, method: Method, call: Call, request: bytes | None) -> bytes:
        self.served += 1
        return b""


class Context:
    """What grpcio tells of a call."""

    def __init__(self, remaining_s: float | None) -> None:
        self.remaining_s = remaining_s

    def invocation_metadata(self) -> tuple[Any, ...]:
        return ()

    def time_remaining(self) -> float | None:
        return self.remaining_s

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise grpc.aio.AbortError(code, details)


@pytest.mark.parametrize(("up", "down"), SHAPES)
async def test_a_call_whose_deadline_has_passed_is_not_served(
    monkeypatch: pytest.MonkeyPatch, up: bool, down: bool
) -> None:
    """gRPC's core hands such calls on until its timer has run, which a busy machine delays."""
    handlers: list[grpc.GenericRpcHandler] = []

    def server(**arguments: Any) -> grpc.aio.Server:
        handlers.extend(arguments["handlers"])
        return make_server(**arguments)

    make_server = grpc.aio.server
    monkeypatch.setattr(grpc.aio, "server", server)
    serving, listener = Counted(), GrpcioListener()
    await listener.start([Bind("127.0.0.1:0")], serving, SETTINGS)
    await listener.stop(0)
    of_method: Any = handlers[0].service(SimpleNamespace(method=f"/t.T/{up}{down}"))
    behaviour = getattr(of_method, f"{'stream' if up else 'unary'}_{'stream' if down else 'unary'}")
    with pytest.raises(grpc.aio.AbortError) as caught:
        await behaviour(b"", Context(0.0))
    assert (caught.value.args, serving.served) == ((grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"), 0)
    for remaining_s in (0.001, None):
        await behaviour(b"", Context(remaining_s))
    assert serving.served == 2
