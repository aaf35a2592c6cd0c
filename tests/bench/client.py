"""A Python client with 64 calls in flight, and its own cost: `python -m tests.bench.client KIND ADDRESS KEY CALLS`.

Prints one JSON object with the fields of `tests.bench.load.Run`. KIND: grpc.aio, dial (onelane's channel to one
server) or connect (the one that knows the ring).
"""

import asyncio
import json
import sys
from time import perf_counter, process_time
from typing import Any

import uvloop

from tests.echo.v1.echo_pb2 import EchoRequest
from tests.echo.v1.echo_pb2_grpc import EchoStub

IN_FLIGHT = 64
WARM = 640
"""Calls before those that are measured."""


def channel(kind: str, address: str) -> Any:
    """A channel of that kind. What it needs is loaded here, so that no kind pays for another."""
    if kind == "grpc.aio":
        import grpc.aio

        return grpc.aio.insecure_channel(address)
    if kind == "dial":
        from onelane.client.channel import dial

        return dial(address)
    from onelane.client.ring_channel import connect

    return connect(address)


async def calls(stub: Any, key: str, count: int) -> list[float]:
    """Make `count` calls; the seconds that each has taken."""
    request = EchoRequest(key=key, text="x" * 32)
    left = iter(range(count))
    seconds: list[float] = []

    async def one_after_the_other() -> None:
        for _ in left:
            began = perf_counter()
            await stub.Unary(request, timeout=30)
            seconds.append(perf_counter() - began)

    await asyncio.gather(*(one_after_the_other() for _ in range(IN_FLIGHT)))
    return seconds


async def main(kind: str, address: str, key: str, count: int) -> None:
    """Warm, measure, print."""
    async with channel(kind, address) as open_channel:
        stub = EchoStub(open_channel)
        await calls(stub, key, WARM)
        began, used = perf_counter(), process_time()
        seconds = await calls(stub, key, count)
        used, spent = process_time() - used, perf_counter() - began
    p99 = sorted(seconds)[int(0.99 * count)]
    print(json.dumps({"cpu_us": used / count * 1e6, "per_s": count / spent, "p99_ms": p99 * 1000}))  # noqa: T201


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
