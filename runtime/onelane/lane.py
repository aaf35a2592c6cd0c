"""The lane: where calls find their key, their shard, and their handler.

Promises: whatever ends a handler, the call has a status; an exception's text stays in our log; each call is counted
once, by the shard that gave its answer. Everything here runs on one event loop, so nothing is locked.
"""

import asyncio
from collections.abc import Callable
from contextvars import Token
from time import perf_counter
from typing import Any

import grpc

from onelane import handling, keys, outcome
from onelane.call import OK, Call, Metadata
from onelane.errors import BadKey, Draining, NotHome, OnelaneError, Overloaded
from onelane.forward import HOP, NOT_HOME, SERVED, Forwarder, take_marker
from onelane.handling import parse
from onelane.keys import ANY, FieldKey
from onelane.methods import Method
from onelane.placement import Member, Placement, route
from onelane.scope import Scope, current
from onelane.spans import SpanRecord
from onelane.stats import Count, Spread, Stats
from onelane.telemetry import Tracer, context_of, inbound

LOOK_AGAIN_S = 1.0
_NOTHING: dict[str, Any] = {}


class Entry:
    """One method with its cells, so that counting a call is two additions."""

    __slots__ = ("_calls", "_cells", "_spread", "_stats", "any", "is_simple", "may_be_endless", "method", "reads")

    def __init__(self, method: Method, stats: Stats) -> None:
        self.method = method
        self.any = method.rule is ANY
        self.may_be_endless = self.any and method.response_streaming
        """A watch that nobody would end: a drain does."""
        self.reads = method.rule.read if isinstance(method.rule, FieldKey) else None
        """Reads the key of a message, where that is where the key is."""
        streams = method.request_streaming or method.response_streaming
        self.is_simple = method.is_async and not streams and method.choose is None
        self._stats = stats
        self._cells: dict[str, tuple[Count, Spread]] = {}
        self._calls, self._spread = self._make("OK")

    def count(self, code: grpc.StatusCode, seconds: float) -> None:
        if code is OK:
            # Apart, because looking a status code up by its hash costs as much as all the rest of this.
            self._calls.value += 1
            self._spread.record(seconds)
            return
        cells = self._cells.get(code.name)
        if cells is None:
            cells = self._cells[code.name] = self._make(code.name)
        cells[0].value += 1
        cells[1].record(seconds)

    def _make(self, code: str) -> tuple[Count, Spread]:
        attributes = {"rpc.method": self.method.name, "rpc.response.status_code": code}
        calls = self._stats.counter("onelane.calls", unit="{call}", description="Calls answered by this shard")
        duration = self._stats.histogram("rpc.server.call.duration", unit="s", description="Duration of calls")
        return calls.at(attributes), duration.at(attributes | {"rpc.system.name": "grpc"})


class Lane:
    """All calls of one shard. Owned by its event loop."""

    def __init__(
        self,
        *,
        name: str,
        placement: Placement,
        forwarder: Forwarder,
        stats: Stats,
        tracer: Tracer,
        max_in_flight: int,
        now: Callable[[], float],
    ) -> None:
        self.name = name
        self.entries: dict[str, Entry] = {}
        self.in_flight = 0
        self.own_in_flight = 0
        """Of these, the calls that came from clients, not from siblings."""
        self.received = 0
        self.draining = False
        self._placement = placement
        self._newer = asyncio.Event()
        self._idle = asyncio.Event()
        self._forwarder = forwarder
        self._stats = stats
        self._tracer = tracer
        self._max_in_flight = max_in_flight
        self._now = now
        self._forwards = stats.counter("onelane.forwards", unit="{call}", description="Calls sent on to the owner").at()
        self._endless: set[asyncio.Task[Any]] = set()
        in_flight = stats.gauge("onelane.calls.in_flight", unit="{call}", description="Calls being worked on")
        in_flight.observe(lambda: self.in_flight)

    @property
    def placement(self) -> Placement:
        return self._placement

    def place(self, placement: Placement) -> None:
        """Follow a newer placement; an older one is ignored."""
        if placement.epoch > self._placement.epoch:
            self._placement = placement
            self._newer.set()
            self._newer = asyncio.Event()

    def home_of(self, method: Method, metadata: Metadata, message: bytes | None) -> str | None:
        """See `onelane.listener.Serving`."""
        rule = method.rule
        if rule is ANY:
            return ""
        try:
            if not isinstance(rule, FieldKey) or keys.header_of(metadata):
                key = keys.key_in(rule, None, metadata)
            elif message is None:
                return None
            else:
                key = rule.read(parse(method, message))
        except OnelaneError:
            return ""
        owner = self._placement.owner_of(key)
        return "" if owner.name == self.name else owner.socket

    def add(self, method: Method) -> None:
        self.entries[method.path] = Entry(method, self._stats)

    async def drain(self) -> None:
        """Refuse new calls of clients; wait until none is under way. What siblings forward is still served."""
        self.draining = True
        self.end_watches()
        if self.own_in_flight:
            await self._idle.wait()

    def end_watches(self) -> None:
        """Cancel the streams that nobody would end, such as health's and the topology's `Watch`."""
        for task in self._endless:
            task.cancel()

    async def serve(self, entry: Entry, call: Call, request: bytes | None) -> bytes:
        """Run one call to its end; its outcome stands in `call`. Returns the answer of a unary response.

        request: the message, or None where the client streams.
        """
        started = self._begin(call)
        mine = True
        try:
            self._admit(entry, call)
            if request is None and self._asks_message(entry, call):
                await self._peek(entry.method, call)
            owner, message = self._home(entry, call, request)
            if owner is None and entry.is_simple:
                # Written out: this is the path of nearly every call.
                self._enter(entry, call)
                method = entry.method
                reply = handling.bytes_of(method, call, await method.handler(message, call))
            elif owner is None:
                reply = await self._run(entry, call, message)
            else:
                reply, mine = await self._forward(owner, entry, call, request)
            return reply if call.code_now is OK else b""
        except asyncio.CancelledError:
            if outcome.cancelled(call, method=entry.method.name, shard=self.name):
                raise
            return b""
        except Exception as error:
            outcome.failed(call, error, method=entry.method.name, shard=self.name)
            return b""
        finally:
            self._end(entry, call, started, mine=mine)

    def serve_now(self, entry: Entry, call: Call, request: bytes) -> bytes | None:
        """Run a call of a plain `def` method in one go, without a task; None where it must go another way (`serve`)."""
        started = self._begin(call)
        try:
            self._admit(entry, call)
            owner, message = self._home(entry, call, request)
            if owner is not None:
                self._left(call)
                started = 0.0
                return None
            token = self._enter(entry, call)
            try:
                reply = handling.run_now(entry.method, call, message)
            finally:
                current.reset(token)
            return reply if call.code_now is OK else b""
        except (Exception, asyncio.CancelledError) as error:
            outcome.failed(call, error, method=entry.method.name, shard=self.name)
            return b""
        finally:
            if started:
                self._end(entry, call, started, mine=True)

    def _begin(self, call: Call) -> float:
        self.received += 1
        self.in_flight += 1
        if not call.trusted:
            self.own_in_flight += 1
        return perf_counter()

    def _end(self, entry: Entry, call: Call, started: float, *, mine: bool) -> None:
        self._left(call)
        if not mine:
            return
        entry.count(call.code_now, perf_counter() - started)
        if isinstance(call.span, SpanRecord):
            self._tracer.end_call(call.span, status=call.code_now.name, hop=call.hop, server=True)
        if call.debug:
            call.trailers = (*call.trailers, *call.debug)
        if call.trusted:
            call.trailers = (*call.trailers, (SERVED, self.name))

    def _left(self, call: Call) -> None:
        self.in_flight -= 1
        if not call.trusted:
            self.own_in_flight -= 1
        if self.draining and not self.own_in_flight:
            self._idle.set()

    def _admit(self, entry: Entry, call: Call) -> None:
        if self.draining and not call.trusted and not entry.method.path.startswith("/grpc.health."):
            raise Draining(f"shard {self.name} is draining")
        if self.in_flight > self._max_in_flight:
            raise Overloaded(f"shard {self.name}", waiting=self._max_in_flight)

    def _asks_message(self, entry: Entry, call: Call) -> bool:
        """The key of a call is in its first message alone."""
        return isinstance(entry.method.rule, FieldKey) and not keys.header_of(call.metadata)

    async def _peek(self, method: Method, call: Call) -> None:
        """Read the first message of a stream, to route by."""
        assert isinstance(method.rule, FieldKey)
        first = await call.next_bytes()
        if first is None:
            raise BadKey(f"the stream ended before its first message, which carries the key {method.rule.paths[0]}")
        call.push_back(first)

    def _home(self, entry: Entry, call: Call, request: bytes | None) -> tuple[Member | None, Any]:
        """Where a call runs (None: here), and its request, parsed, where it runs here and has one."""
        method = entry.method
        message = None
        if not call.metadata and request is not None and entry.reads is not None:
            message = parse(method, request)
            member = self._placement.owner_of(entry.reads(message))
            return None if member.name == self.name else member, message
        if entry.any:
            if call.metadata:
                self._look_at(call, dict(call.metadata))
            return None, None if request is None else parse(method, request)
        meta = dict(call.metadata) if call.metadata else _NOTHING
        rule = method.rule
        header = meta.get(keys.HEADER)
        if header or not isinstance(rule, FieldKey):
            key = keys.key_in(rule, None, call.metadata)
        elif request is not None:
            message = parse(method, request)
            key = rule.read(message)
        else:
            assert call.first is not None
            key = rule.read(parse(method, call.first))
        hopped = self._look_at(call, meta) if meta else False
        owner = self._owner(key, call, hopped)
        if owner is None and message is None and request is not None:
            message = parse(method, request)
            if isinstance(rule, FieldKey):
                keys.agree(rule.read(message), keys.header_of(call.metadata), rule.paths[0])
        return owner, message

    def _look_at(self, call: Call, meta: Any) -> bool:
        """Take what metadata say to the runtime; whether a sibling has forwarded the call."""
        if "traceparent" in meta:
            call.parent = inbound(meta["traceparent"], meta.get("tracestate"))
        hopped = call.trusted and HOP in meta
        if hopped:
            call.hop = "forwarded"
        if "onelane-debug" in meta:
            epoch = str(self._placement.epoch)
            call.debug = (("onelane-shard", self.name), ("onelane-epoch", epoch), ("onelane-hop", call.hop))
        return hopped

    def _owner(self, key: str, call: Call, hopped: bool) -> Member | None:
        try:
            return route(key, here=self.name, hopped=hopped, placement=self._placement)
        except NotHome as error:
            call.trailers = ((NOT_HOME, str(error.epoch)), ("onelane-epoch", str(error.epoch)))
            raise

    async def _forward(self, owner: Member, entry: Entry, call: Call, request: bytes | None) -> tuple[bytes, bool]:
        method = entry.method
        self._forwards.value += 1
        span = self._tracer.start(method.name, "CLIENT", call.parent, remote=True)
        trace = context_of(span)
        if request is not None and not method.response_streaming:
            reply = await self._forward_unary(owner, call, request, trace)
        else:
            reply = await self._forwarder.stream(
                owner, call, request, trace, streams_response=method.response_streaming
            )
        self._tracer.end_call(span, status=call.code_now.name, hop="forwarded", server=False)
        return reply, take_marker(call, SERVED) is None

    async def _forward_unary(self, owner: Member, call: Call, request: bytes, trace: Any) -> bytes:
        reply = await self._forwarder.unary(owner, call, request, trace)
        epoch = take_marker(call, NOT_HOME) if call.code_now is grpc.StatusCode.UNAVAILABLE else None
        if epoch is None or int(epoch) <= self._placement.epoch:
            return reply
        # The owner knows a newer placement: wait for it, look again, and send the call once more.
        try:
            async with asyncio.timeout(LOOK_AGAIN_S):
                while self._placement.epoch < int(epoch):
                    await self._newer.wait()
        except TimeoutError:
            return reply
        key = keys.header_of(call.metadata) or self._key_of(call.method, request)
        call.fail(OK, "")
        call.trailers = ()
        return await self._forwarder.unary(self._placement.owner_of(key), call, request, trace)

    def _key_of(self, path: str, request: bytes) -> str:
        method = self.entries[path].method
        assert isinstance(method.rule, FieldKey)
        return method.rule.read(parse(method, request))

    async def _run(self, entry: Entry, call: Call, message: Any) -> bytes:
        method = entry.method
        self._enter(entry, call)
        if method.choose is not None:
            method = await method.choose(call)
        if not entry.may_be_endless:
            return await handling.run(method, call, message)
        task = asyncio.current_task()
        assert task is not None
        self._endless.add(task)
        try:
            return await handling.run(method, call, message)
        finally:
            self._endless.discard(task)

    def _enter(self, entry: Entry, call: Call) -> Token[Scope | None]:
        """Begin the span of a call, and say what it hands on to those it makes."""
        name = entry.method.name
        span = call.span = self._tracer.start(name, "SERVER", call.parent, remote=True)
        remaining = call.time_remaining()
        deadline_at = None if remaining is None else self._now() + remaining
        return current.set(Scope(name, deadline_at, span.context if isinstance(span, SpanRecord) else span))
