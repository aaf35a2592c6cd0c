"""What the clients of chaos call: numbers in memory that moves with its key, or kept on disk; reminders; streams."""

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import onelane

from tests.chaos.v1 import agenda_pb2_grpc, feed_pb2_grpc, ledger_pb2_grpc
from tests.chaos.v1.agenda_pb2 import Plan, Planned
from tests.chaos.v1.feed_pb2 import Count, Subject
from tests.chaos.v1.ledger_pb2 import Change, Value

RUNS_FILE = "CHAOS_RUNS"
"""The variable with the file in which each run of a reminder writes a line: what it does outside of its state."""


class Plain(ledger_pb2_grpc.LedgerServicer):
    def __init__(self, shard: onelane.Shard, *, durable: bool = False) -> None:
        self.shard = shard
        self.numbers = shard.keyed("numbers", int, durable=durable)

    def _set(self, key: str, amount: int) -> Value:
        self.numbers[key] = amount
        return Value(amount=amount, shard=self.shard.name)

    async def Add(self, request: Change, context: Any) -> Value:
        return self._set(request.key, self.numbers.get(request.key, 0) + request.amount)

    async def Put(self, request: Change, context: Any) -> Value:
        return self._set(request.key, request.amount)

    async def Read(self, request: Change, context: Any) -> Value:
        return Value(amount=self.numbers.get(request.key, 0), shard=self.shard.name)

    async def AddThrough(self, request: Change, context: Any) -> Value:
        inner = Change(key=request.other, amount=request.amount)
        return await self.shard.call(request.other, ledger_pb2_grpc.LedgerServicer.Add, inner)


class Kept(Plain):
    def __init__(self, shard: onelane.Shard) -> None:
        super().__init__(shard, durable=True)


KEPT = "kept"
"""What the keys of `Mixed` begin with whose numbers are durable."""


class Mixed(ledger_pb2_grpc.LedgerServicer):
    """Numbers in memory, and durable ones. An answer says which life has made it, by the placement of which epoch."""

    def __init__(self, shard: onelane.Shard) -> None:
        self.shard = shard
        self.plain = shard.keyed("plain", int)
        self.kept = shard.keyed("kept", int, durable=True)

    def _numbers(self, key: str) -> Any:
        return self.kept if key.startswith(KEPT) else self.plain

    def _value(self, key: str, amount: int) -> Value:
        # No service needs to know these two: only the tests compare them.
        life, epoch = self.shard._life, self.shard._lane.router.epoch_of(key)
        return Value(amount=amount, shard=f"{self.shard.name} {epoch} {life}")

    def _set(self, key: str, amount: int) -> Value:
        self._numbers(key)[key] = amount
        return self._value(key, amount)

    async def Add(self, request: Change, context: Any) -> Value:
        return self._set(request.key, self._numbers(request.key).get(request.key, 0) + request.amount)

    async def Put(self, request: Change, context: Any) -> Value:
        return self._set(request.key, request.amount)

    async def Read(self, request: Change, context: Any) -> Value:
        return self._value(request.key, self._numbers(request.key).get(request.key, 0))

    async def AddThrough(self, request: Change, context: Any) -> Value:
        inner = Change(key=request.other, amount=request.amount)
        return await self.shard.call(request.other, ledger_pb2_grpc.LedgerServicer.Add, inner)


class Agenda(agenda_pb2_grpc.AgendaServicer):
    """Counts the runs of each reminder."""

    def __init__(self, shard: onelane.Shard) -> None:
        self.shard = shard
        self.runs = shard.keyed("runs", dict[str, int], durable=True)
        self.file = Path(os.environ[RUNS_FILE])

    async def Remind(self, request: Plan, context: Any) -> Planned:
        run = agenda_pb2_grpc.AgendaServicer.Run
        await self.shard.remind(request.key, run, request, after_s=request.after_s, id=request.name)
        return Planned()

    async def Forget(self, request: Plan, context: Any) -> Planned:
        return Planned(was_set=await self.shard.forget_reminder(request.key, request.name))

    async def Run(self, request: Plan, context: Any) -> Planned:
        runs = self.runs.setdefault(request.key, {})
        runs[request.name] = runs.get(request.name, 0) + 1
        with self.file.open("a") as file:
            file.write(f"{request.name} {time.time()}\n")
        return Planned()

    async def Runs(self, request: Plan, context: Any) -> Planned:
        reminders = await self.shard.reminders(request.key)
        return Planned(names=[reminder.id for reminder in reminders], runs=self.runs.get(request.key, {}))


class Feed(feed_pb2_grpc.FeedServicer):
    """Counts, and publishes each count."""

    durable = False

    def __init__(self, shard: onelane.Shard) -> None:
        self.shard = shard
        self.counts = shard.keyed("counts", int, durable=self.durable)

    async def Tick(self, request: Subject, context: Any) -> Count:
        count = Count(number=self.counts.get(request.key, 0) + 1)
        self.counts[request.key] = count.number
        self.shard.publish(f"feed/{request.key}", count)
        return count

    async def Watch(self, request: Subject, context: Any) -> AsyncIterator[Count]:
        with self.shard.subscribe(f"feed/{request.key}", Count) as published:
            async with self.shard.turn(request.key):
                last = self.counts.get(request.key, 0)
            yield Count(number=last)
            async for count in published:
                assert isinstance(count, Count), f"the stream lags behind: {count}"
                # What another shard has published before the key came here may come later.
                if count.number > last:
                    last = count.number
                    yield count


class KeptFeed(Feed):
    durable = True
