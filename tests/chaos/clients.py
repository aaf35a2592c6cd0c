"""Clients of the ledger, and the history of what each of them asked and was answered."""

import asyncio
import json
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import grpc
import grpc.aio
import onelane

from tests.chaos.v1 import ledger_pb2_grpc
from tests.chaos.v1.ledger_pb2 import Change, Value
from tests.history.operations import Add, Operation, Put, Read, Request

CALL_S = 20.0
"""Deadline of a call: longer than anything that a schedule does."""
RETRY = {
    "maxAttempts": 5,
    "initialBackoff": "0.02s",
    "maxBackoff": "0.5s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
RETRYING = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": RETRY}]})


@dataclass(frozen=True, slots=True)
class Failure:
    """A call without an answer."""

    at: float
    client: str
    method: str
    key: str
    code: str
    details: str
    called_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call was answered, and by whom."""

    key: str
    called_at: float
    answered_at: float
    shard: str
    """As the service has named it."""


@dataclass
class History:
    """Of all clients of one app."""

    operations: list[Operation] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    repeated: Counter[str] = field(default_factory=Counter)
    """Why calls were made again with their id."""


@dataclass(frozen=True, slots=True)
class Client:
    """Something that calls."""

    name: str
    stub: Any
    retries: bool = False
    """By itself, without an id."""
    with_id: bool = False
    """Gives each change an id, and repeats it until it is answered."""


def stock_channel(target: str, *, retrying: bool) -> grpc.aio.Channel:
    """Of grpcio, with a connection of its own."""
    options: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1)]
    # It connects again soon; the time that an attempt may take stays, as for a process that is frozen.
    options += [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
    if retrying:
        options.append(("grpc.service_config", RETRYING))
    return grpc.aio.insecure_channel(target, options)


class Clients:
    """All clients of one app. Each calls one key after another until it is told to stop."""

    def __init__(
        self,
        keys: Sequence[str],
        seed: int,
        history: History,
        *,
        pause_s: float = 0.0,
        calls_through: bool = True,
        most: int = 3,
    ) -> None:
        """calls_through: some of the calls are made by a handler, in the turn of another key. most: that a call adds.
        1 where many calls have no answer: how many of which amounts were added would be a search without end."""
        self._most = most
        self._keys = keys
        self._through = 0.4 if calls_through else 0.0
        self._seed = seed
        self._history = history
        self._pause_s = pause_s
        self._channels: list[Any] = []
        self._clients: list[Client] = []
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def add(self, name: str, channel: Any, *, retrying: bool, with_id: bool = False) -> None:
        self._channels.append(channel)
        stub: Any = ledger_pb2_grpc.LedgerStub(channel)
        self._clients.append(Client(name, stub, retrying or with_id, with_id))

    def add_ours(self, target: str, name: str = "ours") -> None:
        self.add(name, onelane.connect(target, deadline_s=CALL_S), retrying=True)

    def add_stock(self, name: str, target: str, *, retrying: bool = False, with_id: bool = False) -> None:
        self.add(name, stock_channel(target, retrying=retrying), retrying=retrying, with_id=with_id)

    def start(self) -> None:
        for number, client in enumerate(self._clients):
            rng = Random(f"{self._seed}/{number}")
            self._tasks.append(asyncio.create_task(self._run(client, rng)))

    async def stop(self) -> None:
        """Wait for what is under way."""
        self._stop.set()
        await asyncio.gather(*self._tasks)
        for channel in self._channels:
            await channel.close()

    async def check(self) -> None:
        """Nothing: what they were answered is in the history."""

    async def _run(self, client: Client, rng: Random) -> None:
        while not self._stop.is_set():
            await asyncio.sleep(self._pause_s)
            key, amount, dice = rng.choice(self._keys), rng.randint(1, self._most), rng.random()
            if dice < 0.2:
                await self._call(client, client.stub.Read, Read(), Change(key=key))
            elif dice < 0.3:
                # Unique, as far as chance goes: so the checker knows which of them it sees.
                amount = rng.randrange(10**9)
                await self._call(client, client.stub.Put, Put(amount), Change(key=key, amount=amount))
            elif dice < self._through:
                # By keys of their own: no two turns wait for each other.
                through = Change(key=f"through-{rng.randrange(8)}", other=key, amount=amount)
                await self._call(client, client.stub.AddThrough, Add(amount), through)
            else:
                await self._call(client, client.stub.Add, Add(amount), Change(key=key, amount=amount))

    async def _call(self, client: Client, method: Any, request: Request, message: Change) -> None:
        called_at = time.monotonic()
        key = message.other or message.key
        try:
            value = await self._ask(client, method, request, message)
        except grpc.aio.AioRpcError as error:
            now = time.monotonic()
            details = f"{error.details()}"
            self._history.failures.append(
                Failure(now, client.name, type(request).__name__, key, error.code().name, details, called_at)
            )
            if not isinstance(request, Read) and not _was_not_sent(client, error):
                self._history.operations.append(Operation(key, request, called_at))
            await asyncio.sleep(0.01)
            return
        answered_at = time.monotonic()
        self._history.operations.append(Operation(key, request, called_at, answered_at, value.amount))
        self._history.answers.append(Answer(key, called_at, answered_at, value.shard))

    async def _ask(self, client: Client, method: Any, request: Request, message: Change) -> Value:
        if not client.with_id or isinstance(request, Read):
            value: Value = await method(message, timeout=CALL_S)
            return value
        repeated: Value = await once(method, message, self._history.repeated)
        return repeated


async def once(method: Any, message: Any, repeated: Counter[str]) -> Any:
    """Call with an id until it is answered. repeated: counts why that took more than one call.

    Raises:
        AioRpcError: it is not repeated for this status, or it was in vain.
    """
    metadata = (("idempotency-key", uuid.uuid4().hex),)
    until = time.monotonic() + 2 * CALL_S
    while True:
        try:
            return await method(message, timeout=CALL_S, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > until:
                raise
            repeated[f"{error.details()}"[:60]] += 1
            await asyncio.sleep(0.02)


def _was_not_sent(client: Client, error: grpc.aio.AioRpcError) -> bool:
    return not client.retries and "failed to connect to all addresses" in f"{error.details()}"
