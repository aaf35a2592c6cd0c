"""Clients that count, in a process of their own: `python -m tests.bench.counting KIND ADDRESS EVERY_S`.

KIND is one of `KINDS`; EVERY_S the seconds from an answer to the next call of its key.

Reads the last counts from its input, a JSON object of key → number on one line, and adds to each key, one call after
the other, until its input ends. Prints "counting" once each key was answered, and in the end what the clients saw, one
JSON object with the fields of `Seen`.

Why a process for each kind: grpcio's clients hand each answer to their loop by way of another thread. Beside a loop
that is never idle, as that of clients without a pause is, this thread has the interpreter too late, and they all wait
for 25 to 120 ms together, several times a second and without any change of placement. So they make pauses, too.
"""

import asyncio
import gc
import json
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc.aio
import onelane

from tests.echo.v1.echo_pb2 import EchoRequest
from tests.echo.v1.echo_pb2_grpc import EchoStub

OURS, STOCK = "onelane.connect", "grpc.aio"
KINDS = (OURS, STOCK)
CHANNELS = 3
CALL_S = 20.0
RETRY = {
    "maxAttempts": 5,
    "initialBackoff": "0.02s",
    "maxBackoff": "0.5s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
STOCK_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.service_config", json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": RETRY}]})),
]


@dataclass
class Seen:
    """What the clients of one process saw."""

    counts: dict[str, int]
    """The last of each key."""
    failed: int = 0
    wrong: int = 0
    """Answers that were not the key's last count and one more."""
    calls: list[tuple[float, float, str]] = field(default_factory=list)
    """Unix time at its end, duration, key."""


async def count(kind: str, address: str, every_s: float, counts: Mapping[str, int]) -> Seen:
    """Count until this process's input ends."""
    seen, ends = Seen(dict(counts)), asyncio.Event()
    async with AsyncExitStack() as stack:
        stubs = [EchoStub(await stack.enter_async_context(_channel(kind, address))) for _ in range(CHANNELS)]
        keys = list(enumerate(counts))
        for number, key in keys:
            await _call(stubs[number % CHANNELS], key, seen)
        print("counting", flush=True)  # noqa: T201
        clients = [_count(stubs[number % CHANNELS], key, seen, ends, every_s) for number, key in keys]
        tasks = [asyncio.create_task(client) for client in clients]
        await asyncio.to_thread(sys.stdin.read)
        ends.set()
        await asyncio.gather(*tasks)
    return seen


def _channel(kind: str, address: str) -> Any:
    return grpc.aio.insecure_channel(address, STOCK_OPTIONS) if kind == STOCK else onelane.connect(address)


async def _count(stub: Any, key: str, seen: Seen, ends: asyncio.Event, every_s: float) -> None:
    while not ends.is_set():
        await _call(stub, key, seen)
        if every_s:
            await asyncio.sleep(every_s)


async def _call(stub: Any, key: str, seen: Seen) -> None:
    began = time.perf_counter()
    try:
        number = (await stub.Plain(EchoRequest(key=key), timeout=CALL_S)).seen
    except grpc.aio.AioRpcError:
        seen.failed += 1
        return
    seen.calls.append((time.time(), time.perf_counter() - began, key))
    seen.wrong += number != seen.counts[key] + 1
    seen.counts[key] = number


if __name__ == "__main__":
    last = json.loads(sys.stdin.readline())
    # A full collection of garbage takes some 50 ms, in which every key seems to pause.
    gc.disable()
    print(json.dumps(asdict(asyncio.run(count(sys.argv[1], sys.argv[2], float(sys.argv[3]), last)))))  # noqa: T201
