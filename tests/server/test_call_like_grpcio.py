"""A handler's context behaves as grpcio's: each handler runs on grpcio's own server and on a lane behind each listener,
and handler and stock client see the same.

What differs, and why, stands in docs/how-to/moving-from-grpcio.md; each difference has its test elsewhere.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.bounds import BOUND_S
from tests.server.context_cases import CASES, Case, seen, until_seen
from tests.servers import lane_behind, stock, stock_of_threads

LISTENERS = pytest.mark.parametrize("listener", ["native", "grpcio"])
METADATA = (("x-name", "1"), ("x-data-bin", b"\0\xff"))
MAKERS: dict[tuple[bool, bool], Any] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
HANDLERS = {name: MAKERS[case.requests, case.responses](case.handler) for name, case in CASES.items()}


@asynccontextmanager
async def stock_for(reference: str) -> AsyncIterator[str]:
    """grpcio's server; its address."""
    if reference == "grpc":
        async with stock_of_threads(**HANDLERS) as address:
            yield address
    else:
        async with stock(**HANDLERS) as (address, _):
            yield address


async def outcomes(server: AbstractAsyncContextManager[str], names: list[str]) -> dict[str, Any]:
    """For each case, what its handler has seen, and its client."""
    seen.clear()
    results = {}
    async with server as address, grpc.aio.insecure_channel(address) as channel:
        for name in names:
            at_client = await client_of(channel, name, CASES[name])
            await until_seen(name)
            results[name] = (seen[name], at_client)
    return results


async def client_of(channel: Any, name: str, case: Case) -> Any:
    shape = f"{'stream' if case.requests else 'unary'}_{'stream' if case.responses else 'unary'}"
    request: Any = iter([b"1", b"2"]) if case.requests else b"x"
    call = getattr(channel, shape)(f"/t.T/{name}")(request, timeout=BOUND_S, metadata=(*METADATA, ("x-case", name)))
    messages = []
    try:
        if case.responses:
            while (message := await call.read()) is not grpc.aio.EOF:
                messages.append(message)
        else:
            messages.append(await call)
    except grpc.aio.AioRpcError:
        pass
    details = None if "cancels" in name else await call.details()
    metadata = [[*map(tuple, pairs)] for pairs in (await call.initial_metadata(), await call.trailing_metadata())]
    return messages, await call.code(), details, metadata


@LISTENERS
@pytest.mark.parametrize("reference", ["grpc.aio", "grpc"])
async def test_handler_and_client_see_what_they_do_on_grpcios_own_server(reference: str, listener: str) -> None:
    names = [name for name, case in CASES.items() if case.reference == reference]
    expected = await outcomes(stock_for(reference), names)
    onelane = await outcomes(lane_behind(listener, **HANDLERS), names)
    different = [
        f"{name}\n onelane   {onelane[name]}\n grpcio {expected[name]}"
        for name in names
        if onelane[name] != expected[name]
    ]
    assert not different, "\n".join(different)
