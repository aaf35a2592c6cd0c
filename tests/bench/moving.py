"""Clients that count while keys move: failed calls, updates that are lost or doubled, and how long each key paused."""

import asyncio
import gc
import json
import re
import time
import urllib.request
from collections.abc import Collection, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import grpc.aio
import onelane

from tests.echo.v1.echo_pb2 import EchoRequest
from tests.echo.v1.echo_pb2_grpc import EchoStub
from tests.running_app import RunningApp

KEYS = [f"key-{number}" for number in range(48)]
"""Each is counted by a task of its own, one call after the other."""
CHANNELS = 6
"""Half of them are stock clients'."""
BEFORE_S, AFTER_S, CALL_S = 1.5, 0.5, 20.0
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
class Counted:
    """What the clients saw."""

    failed: int = 0
    wrong: int = 0
    """Answers that were not the key's last count and one more."""
    calls: list[tuple[float, float, str]] = field(default_factory=list)
    """Unix time at its end, duration, key."""

    def per_s(self, keys: Collection[str], since: float, until: float) -> float:
        """Calls of these keys in that time."""
        return sum(since <= at < until and key in keys for at, _, key in self.calls) / (until - since)

    def pauses_s(self, since: float, until: float) -> list[float]:
        """The longest call of each key that was under way in that time, in order."""
        longest: dict[str, float] = {}
        for at, took, key in self.calls:
            if at >= since and at - took < until:
                longest[key] = max(took, longest.get(key, 0.0))
        return sorted(longest.values())


@dataclass(frozen=True)
class Change:
    """A change of placement, as the supervisor logs it: Unix times."""

    began: float
    over: float


async def count_during(app: RunningApp, commands: Sequence[str], counts: dict[str, int]) -> Counted:
    """Count while the admin address is given these commands, one after the other. counts: the last of each key."""
    counted, ends = Counted(), asyncio.Event()
    async with AsyncExitStack() as stack:
        stack.enter_context(without_collections())
        stubs = [EchoStub(await _channel(app, number, stack)) for number in range(CHANNELS)]
        clients = [
            asyncio.create_task(_count(stubs[number % CHANNELS], key, counts, counted, ends))
            for number, key in enumerate(KEYS)
        ]
        await asyncio.sleep(BEFORE_S)
        for command in commands:
            await asyncio.to_thread(_command, app, command)
            await asyncio.sleep(AFTER_S)
        ends.set()
        await asyncio.gather(*clients)
    return counted


@contextmanager
def without_collections() -> Iterator[None]:
    """A full collection of garbage takes this process some 50 ms, in which every key seems to pause."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def _channel(app: RunningApp, number: int, stack: AsyncExitStack) -> Any:
    address = app.listen["echo"]
    stock = grpc.aio.insecure_channel(address, STOCK_OPTIONS)
    return await stack.enter_async_context(stock if number % 2 else onelane.connect(address))


async def _count(stub: Any, key: str, counts: dict[str, int], counted: Counted, ends: asyncio.Event) -> None:
    while not ends.is_set():
        began = time.perf_counter()
        try:
            seen = (await stub.Plain(EchoRequest(key=key), timeout=CALL_S)).seen
        except grpc.aio.AioRpcError:
            counted.failed += 1
            continue
        counted.calls.append((time.time(), time.perf_counter() - began, key))
        counted.wrong += seen != counts.get(key, 0) + 1
        counts[key] = seen


def _command(app: RunningApp, path: str) -> None:
    request = urllib.request.Request(f"http://{app.admin}{path}", method="POST", headers={"X-Onelane": "1"})
    with urllib.request.urlopen(request, timeout=120):
        pass


def changes_of(app: RunningApp) -> list[Change]:
    """Those in the supervisor's log."""
    over = re.findall(r"^(\S+ \S+),(\d+) INFO .* change.over .*seconds=(\S+)$", app.log.read_text(), re.MULTILINE)
    ends = [(datetime.fromisoformat(at).timestamp() + int(ms) / 1000, float(seconds)) for at, ms, seconds in over]
    return [Change(at - seconds, at) for at, seconds in ends]
