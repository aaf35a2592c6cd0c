"""Readers of streams whose keys move, and what none of them may miss.

A stream begins with the count of its key, and goes on with each next one. Where it is opened again, the first count may
leave some out, and is no older than the last one before. In the end each reader has the last count.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import onelane

from tests.chaos.clients import once, stock_channel
from tests.chaos.text import words
from tests.chaos.v1 import feed_pb2_grpc
from tests.chaos.v1.feed_pb2 import Count, Subject

WATCHED = 6
"""Keys. Each is watched by a stub of ours, which opens its stream again by itself, and by a stock one."""
PAUSE_S = 0.02
"""Between two counts."""
OVER_S = 30.0
MOVED = "onelane-moved"


@dataclass
class Watchers:
    """See the module. One app."""

    keys: Sequence[str]
    target: str
    keeps_counts: bool
    """No count is lost, whatever is done to the app."""
    opened: Counter[str] = field(default_factory=Counter)
    """Why streams were opened again."""
    failures: list[str] = field(default_factory=list)
    """Streams that ended, and not because their key moved."""
    counts: int = 0
    """That were read."""
    faults: list[str] = field(default_factory=list)
    _last: dict[tuple[str, str], int] = field(default_factory=dict)
    """Reader, key → the last count that it has read."""
    _missed: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Reader, key → counts that were left out within a stream."""
    _lost_answers: Counter[str] = field(default_factory=Counter)
    """Of a key: counts that may have happened without being published, since they were not acknowledged."""
    _counted: dict[str, int] = field(default_factory=dict)
    """Key → the last count that was acknowledged."""
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _ticking: asyncio.Task[None] | None = None
    _readers: list[asyncio.Task[None]] = field(default_factory=list)
    _ours: Any = None
    _stock: Any = None

    def start(self) -> None:
        self.keys = self.keys[:WATCHED]
        self._ours, self._stock = onelane.connect(self.target, marks=True), stock_channel(self.target, retrying=False)
        for key in self.keys:
            self._readers.append(asyncio.create_task(self._read("ours", self._ours, key)))
            self._readers.append(asyncio.create_task(self._read("stock", self._stock, key)))
        self._ticking = asyncio.create_task(self._tick())

    async def stop(self) -> None:
        """Wait for what is under way; the streams stay open."""
        self._stop.set()
        assert self._ticking is not None
        await self._ticking

    async def check(self) -> None:
        """Count once more, and wait until every reader has that; AssertionError where one has missed something."""
        stub: Any = feed_pb2_grpc.FeedStub(self._stock)
        for key in self.keys:
            await self._count(stub, key)
        until = time.monotonic() + OVER_S
        while (behind := self._behind()) and time.monotonic() < until:  # noqa: ASYNC110 - of many tasks
            await asyncio.sleep(0.02)
        assert not behind, f"streams have not gone on: {behind}"
        self.faults += [
            f"{reader} of {key} has missed {missed} counts, of which {self._lost_answers[key]} failed at first"
            for (reader, key), missed in self._missed.items()
            if missed > self._lost_answers[key]
        ]
        assert not self.faults, "\n".join(self.faults[:8])

    async def close(self) -> None:
        """End the streams."""
        for task in self._readers:
            task.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        await self._ours.close()
        await self._stock.close()

    def lines(self) -> list[str]:
        """For people."""
        failures = Counter(failure[-80:] for failure in self.failures)
        return [
            f"  streams: {self.counts} counts read, {self._missed.total()} missed within a stream; opened again: "
            f"{words(self.opened)}",
            *(f"  {count} streams failed: {failure}" for failure, count in failures.most_common(3)),
        ]

    def _behind(self) -> list[str]:
        return [
            f"{reader} of {key} at {self._last.get((reader, key))}, not {self._counted[key]}"
            for reader in ("ours", "stock")
            for key in self.keys
            if self._last.get((reader, key), 0) < self._counted[key]
        ]

    async def _tick(self) -> None:
        stub: Any = feed_pb2_grpc.FeedStub(self._stock)
        number = 0
        while not self._stop.is_set():
            await self._count(stub, self.keys[number % len(self.keys)])
            number += 1
            await asyncio.sleep(PAUSE_S)

    async def _count(self, stub: Any, key: str) -> None:
        failures: Counter[str] = Counter()
        with suppress(grpc.aio.AioRpcError):
            reply: Count = await once(stub.Tick, Subject(key=key), failures)
            self._counted[key] = reply.number
        self._lost_answers[key] += failures.total()

    async def _read(self, reader: str, channel: Any, key: str) -> None:
        while True:
            try:
                await self._follow(reader, feed_pb2_grpc.FeedStub(channel).Watch(Subject(key=key)), key)
            except grpc.aio.AioRpcError as error:
                trailers = dict(error.trailing_metadata() or ())
                has_moved = MOVED in trailers and reader == "stock"
                self.opened[f"{reader}: {'moved' if has_moved else error.code().name}"] += 1
                if not has_moved:
                    self.failures.append(f"{reader} {error.code().name} {error.details()}")
                await asyncio.sleep(0.02)

    async def _follow(self, reader: str, stream: AsyncIterator[Count | onelane.Moved], key: str) -> None:
        """Read one stream to its end."""
        is_first, acknowledged = True, self._counted.get(key, 0)
        async for item in stream:
            if isinstance(item, onelane.Moved):
                is_first, acknowledged = True, 0
                self.opened[f"{reader}: moved"] += 1
                continue
            self._take(reader, key, item.number, acknowledged if is_first else None)
            is_first = False

    def _take(self, reader: str, key: str, number: int, acknowledged: int | None) -> None:
        """acknowledged: of the first count of a stream: what had been counted before it was opened; else None."""
        self.counts += 1
        last = self._last.get((reader, key), 0)
        self._last[reader, key] = number
        if acknowledged is not None:
            if self.keeps_counts and number < max(last, acknowledged):
                self.faults.append(f"{reader}: {key} begins at {number}, after {last}, {acknowledged} acknowledged")
        elif number <= last:
            self.faults.append(f"{reader}: {key} has {number} after {last}")
        elif number > last + 1:
            self._missed[reader, key] += number - last - 1
