"""A listener without sockets: it serves the calls of `MemoryListener.call`. It passes the tests of all listeners."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from onelane.config import App
from onelane.core.hop import split
from onelane.errors import PortTaken
from onelane.server.call import FORWARDED_HOP, Call, Metadata
from onelane.server.listener import Bind, Serving, end_all

MAX_AHEAD = 16
"""Messages that one side of a stream may send ahead of the other's reading."""


@dataclass
class Outcome:
    """The end of one call, as its client sees it."""

    code: grpc.StatusCode
    details: str
    messages: list[bytes]
    initial: Metadata = ()
    trailers: Metadata = ()


@dataclass
class _Net:
    """The memory listeners of this process, by address."""

    listeners: dict[str, "MemoryListener"] = field(default_factory=dict)


NET = _Net()


class MemoryCall(Call):
    """A call whose bytes pass through queues."""

    __slots__ = ("deadline_s", "inbox", "initial", "outbox")

    def __init__(self, method: str, metadata: Metadata, *, trusted: bool, deadline_s: float | None) -> None:
        super().__init__(method, metadata, trusted=trusted)
        self.inbox: asyncio.Queue[bytes | None] = asyncio.Queue(MAX_AHEAD)
        self.outbox: asyncio.Queue[bytes | None] = asyncio.Queue(MAX_AHEAD)
        self.initial: Metadata = ()
        self.deadline_s = deadline_s

    async def receive(self) -> bytes | None:
        return await self.inbox.get()

    async def send(self, message: bytes) -> None:
        await self.outbox.put(message)

    async def send_initial(self, metadata: Metadata) -> None:
        self.initial = metadata

    def send_initial_now(self, metadata: Metadata) -> None:
        self.initial = metadata

    def time_remaining(self) -> float | None:
        return self.deadline_s

    def peer(self) -> str:
        return "memory"

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {}


class MemoryListener:
    """See `onelane.server.listener.Listener`. `call` is the client."""

    def __init__(self) -> None:
        self._serving: Serving | None = None
        self._binds: dict[str, Bind] = {}
        self._limit = 0
        self._tasks: dict[asyncio.Task[Any], Call] = {}

    async def start(self, binds: Sequence[Bind], serving: Serving, settings: App) -> None:
        for bind in binds:
            if not bind.shared and bind.address in NET.listeners:
                raise PortTaken(bind.address, "another memory listener")
        self._serving, self._limit = serving, settings.max_message_bytes
        self._binds = {bind.address: bind for bind in binds}
        NET.listeners |= dict.fromkeys(self._binds, self)

    async def drain(self) -> None:
        """Nothing: there are no connections."""

    async def stop(self, grace_s: float) -> None:
        for address in self._binds:
            NET.listeners.pop(address, None)
        if self._tasks:
            _, late = await asyncio.wait([*self._tasks], timeout=grace_s)
            await end_all(late)

    def under_way(self) -> Sequence[Call]:
        return list(self._tasks.values())

    async def call(
        self,
        address: str,
        path: str,
        requests: AsyncIterator[bytes] | Sequence[bytes],
        *,
        metadata: Metadata = (),
        deadline_s: float | None = None,
    ) -> Outcome:
        """Make one call at `address`; returns its outcome. Cancelling this cancels the handler."""
        method = next((method for method in self._methods() if method.path == path), None)
        if method is None or address not in NET.listeners:
            code = grpc.StatusCode.UNAVAILABLE if address not in NET.listeners else grpc.StatusCode.UNIMPLEMENTED
            return Outcome(code, f"{path} at {address}", [])
        trusted = self._binds[address].trusted
        metadata, client = split(metadata, trusted=trusted)
        call = MemoryCall(path, metadata, trusted=trusted, deadline_s=deadline_s)
        if client is not None:
            call.hop, call.parent = FORWARDED_HOP, client.trace
        first = None if method.request_streaming else next(iter(requests))  # type: ignore[arg-type]
        if first is not None and len(first) > self._limit:
            return Outcome(grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max", [])
        return await self._run(method, call, first, requests)

    async def _run(self, method: Any, call: MemoryCall, first: bytes | None, requests: Any) -> Outcome:
        assert self._serving is not None
        answers: list[bytes] = []
        serving = asyncio.ensure_future(_serve_call(self._serving, method, call, first))
        self._tasks[serving] = call
        feeding = asyncio.ensure_future(_feed(call, requests)) if first is None else None
        try:
            while (answer := await call.outbox.get()) is not None:
                answers.append(answer)
            reply = await serving
        except asyncio.CancelledError:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            call.fail(grpc.StatusCode.CANCELLED, "stopped")
            reply = b""
        finally:
            self._tasks.pop(serving, None)
            if feeding is not None:
                feeding.cancel()
        if not method.response_streaming and call.code_now is grpc.StatusCode.OK:
            answers.append(reply)
        return Outcome(call.code_now, call.details_now, answers, call.initial, call.trailers)

    def _methods(self) -> Sequence[Any]:
        return self._serving.methods() if self._serving is not None else []


async def _serve_call(serving: Serving, method: Any, call: MemoryCall, first: bytes | None) -> bytes:
    try:
        reply = await serving.serve(method, call, first)
    except asyncio.CancelledError:
        # The client has left: make room, so that the end of the stream need not wait.
        while not call.outbox.empty():
            call.outbox.get_nowait()
        call.outbox.put_nowait(None)
        raise
    await call.outbox.put(None)
    return reply


async def _feed(call: MemoryCall, requests: AsyncIterator[bytes] | Sequence[bytes]) -> None:
    if isinstance(requests, Sequence):
        for request in requests:
            await call.inbox.put(request)
    else:
        async for request in requests:
            await call.inbox.put(request)
    await call.inbox.put(None)
