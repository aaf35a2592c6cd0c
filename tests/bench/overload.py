"""Five times what a shard can do: how much it still does, how late, and what it keeps in memory.

`python -m tests.bench.overload ADDRESS CALLS_PER_S SECONDS` sends at that rate, whatever comes back, and prints one
JSON object with the fields of `Flood`. The handler blocks its lane for a known time, so what it can do is known too.
"""

import asyncio
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import grpc.aio
import uvloop
from onelane.client.channel import dial

from tests.echo.v1.echo_pb2 import EchoRequest
from tests.echo.v1.echo_pb2_grpc import EchoStub
from tests.running_app import ROOT

BLOCK_S = 0.005
"""How long the handler keeps its lane."""
TIMES = 5
SECONDS = 4.0
KEYS = 1000
CONNECTIONS = 8


@dataclass(frozen=True, slots=True)
class Flood:
    """What became of the calls."""

    answered_per_s: float
    refused_per_s: float
    p99_ms: float
    """Of the answered."""


async def flood(address: str, per_s: float, seconds: float) -> Flood:
    """Send at a fixed rate; calls that come back do not slow it down."""
    numbers = itertools.count()
    answered: list[float] = []
    refused = 0

    async def one(stub: Any) -> None:
        nonlocal refused
        began = perf_counter()
        try:
            await stub.Misbehave(EchoRequest(key=str(next(numbers) % KEYS), order=f"block {BLOCK_S}"), timeout=10)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
            refused += 1
        else:
            answered.append(perf_counter() - began)

    channels = [dial(address) for _ in range(CONNECTIONS)]
    stubs = itertools.cycle([EchoStub(channel) for channel in channels])
    began = perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(int(per_s * seconds)):
            await asyncio.sleep(max(0.0, began + number / per_s - perf_counter()))
            tasks.create_task(one(next(stubs)))
    spent = perf_counter() - began
    for channel in channels:
        await channel.close()
    return Flood(len(answered) / spent, refused / spent, sorted(answered)[int(0.99 * len(answered))] * 1000)


def run(address: str, per_s: float) -> Flood:
    """The same from a process of its own."""
    program = [sys.executable, "-m", "tests.bench.overload", address, str(per_s), str(SECONDS)]
    out = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout
    return Flood(**json.loads(out))


def rss_kib(pids: Sequence[int]) -> int:
    """Memory of these processes."""
    status = (Path(f"/proc/{pid}/status").read_text() for pid in pids)
    return sum(int(text.partition("VmRSS:")[2].split()[0]) for text in status)


if __name__ == "__main__":
    outcome = uvloop.run(flood(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])))
    print(json.dumps(asdict(outcome)))  # noqa: T201
