"""The lane: where calls find their key, their shard, and their handler.

Promises: whatever ends a handler, the call has a status; an exception's text stays in our log; each call is counted
once, by the shard that gave its answer. Everything here runs on one event loop, so nothing is locked.
"""

import asyncio
from collections import deque
from collections.abc import Coroutine
from contextvars import Token
from functools import partial
from time import perf_counter
from typing import Any

import grpc

from onelane.core import keys
from onelane.core.context import Scope, current
from onelane.core.keys import ANY, FieldKey
from onelane.core.placement import Member, Placement, route
from onelane.core.turns import CHAIN, Turn, Turns, holders, patience_s
from onelane.errors import BadKey, Draining, NotHome, OnelaneError, Overloaded, Refused, RunsLate, TooOften
from onelane.lane.admission import Lateness, Rates
from onelane.lane.forwarder import HOP, NOT_HOME, SERVED, Done, Forwarder, take_marker
from onelane.lane.method_entry import Entry
from onelane.server import handler, status
from onelane.server.call import OK, Call, Metadata
from onelane.server.handler import parse
from onelane.server.listener import Work
from onelane.server.methods import Method
from onelane.telemetry.hot_keys import HotKeys
from onelane.telemetry.spans import SpanRecord
from onelane.telemetry.stats import Stats
from onelane.telemetry.tracer import Span, Tracer, context_of, inbound

LOOK_AGAIN_S = 1.0
_NOTHING: dict[str, Any] = {}
AT_ONCE = 64
"""Calls whose turn has come that go on before the loop looks at its sockets again."""
MOST_HOMES = 16_384
"""Keys whose home is remembered; then all are looked up anew."""
RESERVE = 256
"""Calls beyond the bound for those that go first."""
AWAY = "away"
"""The hop of a call that a sibling has served, and counted."""


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
        turns: Turns,
        max_late_s: float = 0.05,
        rates: Rates | None = None,
    ) -> None:
        self.name = name
        self.turns = turns
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
        self._homes: dict[str, Member | None] = {}
        """Where keys seen lately live by this placement; None for here."""
        self._looking: set[asyncio.Task[None]] = set()
        """Forwarded calls that wait for a newer placement."""
        self._due: deque[tuple[Any, Turn]] = deque()
        """Who has been given a turn, and is to go on."""
        self._going_on = False
        self._forwards = stats.counter("onelane.forwards", unit="{call}", description="Calls sent on to the owner").at()
        self._refusals = stats.counter("onelane.refusals", unit="{call}", description="Calls refused before they began")
        self._lateness = Lateness(max_late_s)
        self._rates = rates
        self.hot_keys = HotKeys()
        self._saw = self.hot_keys.seen.append
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
            self._homes = {}
            self._newer.set()
            self._newer = asyncio.Event()

    def home_of(self, method: Method, metadata: Metadata, message: bytes | None) -> str | None:
        """See `onelane.server.listener.Serving`."""
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

    def arrive(self, method: Method, call: Call, request: bytes | None) -> Work:
        """Take one call: the work to be started now, or None where it is answered already, or waits for its turn.

        Once it has ended its outcome stands in `call`, and `call.answer` has been told the answer of a unary response.
        request: the message, or None where the client streams.
        """
        self.received += 1
        self.in_flight += 1
        if not call.trusted:
            self.own_in_flight += 1
        call.began = perf_counter()
        entry = self.entries[method.path]
        lateness = self._lateness
        if not lateness.began_at:
            self._begin_round(call.began)
        try:
            if self.draining or self.in_flight > self._max_in_flight or call.began > lateness.refuse_from:
                self._admit(entry, call)
            if request is None and entry.asks_message and not keys.header_of(call.metadata):
                return self._guarded(entry, call, self._peeked(entry, call))
            if call.metadata or request is None or entry.reads is None:
                owner, key, message = self._home(entry, call, request)
            else:
                # Written out: this is the path of nearly every call.
                message = parse(method, request)
                key = entry.reads(message)
                try:
                    owner = self._homes[key]
                except KeyError:
                    owner = self._find_home(key)
            if owner is not None:
                if request is None or method.response_streaming:
                    return self._guarded(entry, call, self._forward_stream(owner, entry, call, request))
                self._send_on(owner, entry, call, request)
                return None
            if key is not None:
                self._saw(key)
                if self._rates is not None:
                    self._allow(key, call)
            if entry.takes_turns and key is not None:
                call.turn = self.turns.enter(key, method.name, call.chain, call)
                if call.turn is None:
                    self._wait(entry, call, key, message)
                    return None
            return self._handle(entry, call, message) if entry.is_simple else self._begin(entry, call, message)
        except (Exception, asyncio.CancelledError) as error:
            self._failed(entry, call, error)
            return None

    def _wait(self, entry: Entry, call: Call, key: str, message: Any) -> None:
        """Keep what a call needs that waits for its turn. Its span begins now, and has the waiting as a child."""
        call.span = self._tracer.start(entry.method.name, "SERVER", call.parent, remote=True)
        waiting = self._tracer.start("turn", "INTERNAL", context_of(call.span))
        call.waits = (entry, key, message, waiting)

    def resume(self, call: Call) -> Work:
        """Go on with a call whose turn has come (`call.proceed`)."""
        entry, _, message, waiting = call.waits
        call.waits = None
        self._tracer.end(waiting)
        return self._begin(entry, call, message)

    def withdraw(self, call: Call, *, late: bool) -> None:
        """End a call that waits for its turn: its client has left, or (late) its deadline is about to pass."""
        entry, key, _, waiting = call.waits
        call.waits = None
        self._tracer.end(waiting, error="DEADLINE_EXCEEDED" if late else "CANCELLED")
        if late:
            call.fail(grpc.StatusCode.DEADLINE_EXCEEDED, self._why_late(entry, key, call.chain))
        else:
            call.fail(grpc.StatusCode.CANCELLED, "cancelled while it waited for its turn")
        self.turns.withdraw(key, call)
        self._end(entry, call, b"")

    async def serve(self, method: Method, call: Call, request: bytes | None) -> bytes:
        """`arrive`, and all that follows, for listeners that have a task for each call."""
        work = self.arrive(method, call, request)
        if call.waits is not None:
            work = await self._turn_of(call)
        if work is not None:
            await work
        elif call.sent is not None:
            await self._back_of(call)
        return call.reply

    async def _back_of(self, call: Call) -> None:
        """Wait for the outcome of a forwarded call."""
        try:
            await call.turned()
        except asyncio.CancelledError:
            if call.sent is not None:
                call.sent()
            raise

    async def _turn_of(self, call: Call) -> Work:
        remaining = call.time_remaining()
        try:
            async with asyncio.timeout(None if remaining is None else patience_s(remaining)):
                await call.turned()
        except TimeoutError:
            self.withdraw(call, late=True)
            return None
        except asyncio.CancelledError:
            self.withdraw(call, late=False)
            raise
        return self.resume(call)

    def _begin(self, entry: Entry, call: Call, message: Any) -> Work:
        """Run a call that is at home, and has its turn where it needs one."""
        if entry.is_simple:
            return self._handle(entry, call, message)
        if entry.method.is_immediate:
            self._handle_now(entry, call, message)
            return None
        return self._guarded(entry, call, self._run(entry, call, message))

    async def _handle(self, entry: Entry, call: Call, message: Any) -> None:
        """Run the `async def` handler of one message and one answer: what nearly every call is."""
        reply = b""
        try:
            method = entry.method
            if call.span is None:
                call.span = self._tracer.start(method.name, "SERVER", call.parent, remote=True)
            current.set(call)
            reply = handler.bytes_of(method, call, await method.handler(message, call))
        except asyncio.CancelledError:
            if status.cancelled(call, method=entry.method.name, shard=self.name):
                raise
        except Exception as error:
            status.failed(call, error, method=entry.method.name, shard=self.name)
        finally:
            self._end(entry, call, reply)

    def _handle_now(self, entry: Entry, call: Call, message: Any) -> None:
        """Run a plain `def` handler in one go."""
        reply = b""
        token = self._enter(entry, call)
        try:
            reply = handler.run_now(entry.method, call, message)
        except (Exception, asyncio.CancelledError) as error:
            status.failed(call, error, method=entry.method.name, shard=self.name)
        finally:
            current.reset(token)
            self._end(entry, call, reply)

    async def _guarded(self, entry: Entry, call: Call, work: Coroutine[Any, Any, bytes]) -> None:
        """Whatever ends `work`, the call has a status."""
        reply = b""
        try:
            reply = await work
        except asyncio.CancelledError:
            if status.cancelled(call, method=entry.method.name, shard=self.name):
                raise
        except Exception as error:
            status.failed(call, error, method=entry.method.name, shard=self.name)
        finally:
            self._end(entry, call, reply)

    def _failed(self, entry: Entry, call: Call, error: BaseException) -> None:
        if isinstance(error, Refused):
            self._refusals.add(1, {"onelane.reason": error.reason})
        if call.span is None:
            call.span = self._tracer.start(entry.method.name, "SERVER", call.parent, remote=True)
        status.failed(call, error, method=entry.method.name, shard=self.name)
        self._end(entry, call, b"")

    def _end(self, entry: Entry, call: Call, reply: bytes) -> None:
        """Count a call that has ended, end its turn, and answer it."""
        call.sent = None
        self.in_flight -= 1
        if not call.trusted:
            self.own_in_flight -= 1
        if self.draining and not self.own_in_flight:
            self._idle.set()
        if call.turn is not None:
            self.leave(call.turn)
            call.turn = None
        if call.hop is not AWAY:
            seconds = perf_counter() - call.began
            spread = entry.count(call.code_now, seconds)
            span = call.span
            if isinstance(span, SpanRecord):
                self._tracer.end_call(span, status=call.code_now.name, hop=call.hop, server=True)
                if span.sampled:
                    spread.exemplify(seconds, span)
            if call.debug:
                call.trailers = (*call.trailers, *call.debug)
            if call.trusted:
                call.trailers = (*call.trailers, (SERVED, self.name))
        call.answer(reply if call.code_now is OK else b"")

    def _admit(self, entry: Entry, call: Call) -> None:
        """Refuse a call that cannot be taken now.

        What siblings have taken already goes first, and what the runtime itself serves: health, the topology.
        """
        first = call.trusted or entry.is_ours
        if self.draining and not call.trusted and not entry.method.path.startswith("/grpc.health."):
            raise Draining(f"shard {self.name} is draining")
        if self.in_flight > self._max_in_flight + (RESERVE if first else 0):
            raise Overloaded(f"shard {self.name}", waiting=self._max_in_flight)
        if not first and call.began > self._lateness.refuse_from and self._lateness.refuses(call.began, self.received):
            raise RunsLate(self.name, late_s=call.began - self._lateness.began_at)

    def _allow(self, key: str, call: Call) -> None:
        assert self._rates is not None
        if wait_s := self._rates.wait_s(key, call.began):
            raise TooOften(per_s=self._rates.per_s, wait_s=wait_s)

    def _begin_round(self, now: float) -> None:
        """This is the first call since the loop looked at its sockets."""
        self._lateness.begin(now, self.received)
        # Twice: the first time what this round's calls have made ready has not run yet.
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, self._end_round)

    def _end_round(self) -> None:
        self._lateness.end(perf_counter())

    # Turns

    async def hold(self, key: str, name: str) -> Turn:
        """Wait for the turn of a key that lives here; whoever takes it must `leave` it. name: what runs in it.

        Raises:
            NotHome: the key lives elsewhere.
            Overloaded: too many wait for it.
        """
        if self._placement.owner_of(key).name != self.name:
            raise NotHome(epoch=self._placement.epoch)
        scope = current.get()
        waiter: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()
        turn = self.turns.enter(key, name, scope.onward if scope else "", waiter)
        if turn is not None:
            return turn
        try:
            return await waiter
        except asyncio.CancelledError:
            self.turns.withdraw(key, waiter)
            if waiter.done() and not waiter.cancelled():
                self.leave(waiter.result())
            raise

    def leave(self, turn: Turn) -> None:
        """End a turn; who comes next goes on soon, but not from here, so that a long queue is no deep stack."""
        following = self.turns.leave(turn)
        if following is None:
            return
        waiter, turn = following
        if isinstance(waiter, Call):
            waiter.turn = turn
        self._due.append((waiter, turn))
        if len(self._due) == 1 and not self._going_on:
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        """Let those go on whose turn has come; and who comes after them, where they end at once."""
        self._going_on = True
        for _ in range(AT_ONCE):
            if not self._due:
                break
            waiter, turn = self._due.popleft()
            if isinstance(waiter, Call):
                if waiter.waits is not None:
                    waiter.proceed()
            elif waiter.cancelled():
                self.leave(turn)
            else:
                waiter.set_result(turn)
        self._going_on = False
        if self._due:
            asyncio.get_running_loop().call_soon(self._go_on)

    def _why_late(self, entry: Entry, key: str, chain: str) -> str:
        held = self.turns.holder(key) or "nobody"
        own = ", ".join(holders(chain))
        return (
            f"the deadline passed while {entry.method.name} on shard {self.name} waited for the turn of its key, "
            f"held by {held}" + (f"; its own callers hold {own}" if own else "")
        )

    async def _peeked(self, entry: Entry, call: Call) -> bytes:
        """Read the first message of a stream, to route by, and go on from there."""
        method = entry.method
        assert isinstance(method.rule, FieldKey)
        first = await call.next_bytes()
        if first is None:
            raise BadKey(f"the stream ended before its first message, which carries the key {method.rule.paths[0]}")
        call.push_back(first)
        owner, _, message = self._home(entry, call, None)
        if owner is not None:
            return await self._forward_stream(owner, entry, call, None)
        return await self._run(entry, call, message)

    def _home(self, entry: Entry, call: Call, request: bytes | None) -> tuple[Member | None, str | None, Any]:
        """Where a call runs (None: here), its key (None: it has none), and its request, parsed, where it runs here and
        has one."""
        method = entry.method
        message = None
        if entry.any:
            if call.metadata:
                self._look_at(call, dict(call.metadata))
            return None, None, None if request is None else parse(method, request)
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
        return owner, key, message

    def _find_home(self, key: str) -> Member | None:
        """Where `key` lives: None for here. Kept for its next call."""
        member = self._placement.owner_of(key)
        if len(self._homes) >= MOST_HOMES:
            self._homes.clear()
        home = self._homes[key] = None if member.name == self.name else member
        return home

    def _look_at(self, call: Call, meta: Any) -> bool:
        """Take what metadata say to the runtime; whether a sibling has forwarded the call."""
        if "traceparent" in meta:
            call.parent = inbound(meta["traceparent"], meta.get("tracestate"))
        if "baggage" in meta:
            call.baggage = str(meta["baggage"])
        chain = meta.get(CHAIN)
        if isinstance(chain, str):
            # Whoever knows a turn's number was given it: it counts from anybody. See onelane.turns.
            call.chain = chain
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

    def _send_on(self, owner: Member, entry: Entry, call: Call, request: bytes) -> None:
        """Forward a call of one message and one answer, without a task; `_came_back` goes on."""
        self._forwards.add()
        span = self._tracer.start(entry.method.name, "CLIENT", call.parent, remote=True)
        self._forward(owner, call, request, span, partial(self._came_back, entry, call, request, span))

    def _forward(self, owner: Member, call: Call, request: bytes, span: Span, done: Done) -> None:
        call.sent = _nothing
        cancel = self._forwarder.begin(owner, call, request, context_of(span), done)
        if call.sent is _nothing:
            # Otherwise `done` has been called already, and has ended the call or set another way to cancel it.
            call.sent = cancel

    def _came_back(self, entry: Entry, call: Call, request: bytes, span: Span, reply: bytes) -> None:
        """The outcome of a forwarded call stands in it."""
        epoch = take_marker(call, NOT_HOME) if call.code_now is grpc.StatusCode.UNAVAILABLE else None
        if epoch is None or int(epoch) <= self._placement.epoch:
            self._close_forward(entry, call, span, reply)
            return
        looking = asyncio.get_running_loop().create_task(self._look_again(entry, call, request, span, int(epoch)))
        self._looking.add(looking)
        looking.add_done_callback(partial(self._look_again_ended, entry, call, span))
        call.sent = looking.cancel

    def _look_again_ended(self, entry: Entry, call: Call, span: Span, looking: "asyncio.Task[None]") -> None:
        """Every call ends, also where the task of `_look_again` could not see to it. Each ends once."""
        self._looking.discard(looking)
        if looking.cancelled():
            # Cancelled before its first step: it has run nothing, not even an `except`.
            self._close_forward(entry, call, span, b"")
        elif call.sent is not None and (error := looking.exception()) is not None:
            self._failed(entry, call, error)

    def _close_forward(self, entry: Entry, call: Call, span: Span, reply: bytes) -> None:
        self._tracer.end_call(span, status=call.code_now.name, hop="forwarded", server=False)
        if take_marker(call, SERVED) is not None:
            # It is counted where it was served.
            call.hop = AWAY
        self._end(entry, call, reply)

    async def _look_again(self, entry: Entry, call: Call, request: bytes, span: Span, epoch: int) -> None:
        """The owner knows a newer placement: wait for it, look again, and send the call once more."""
        try:
            async with asyncio.timeout(LOOK_AGAIN_S):
                while self._placement.epoch < epoch:
                    await self._newer.wait()
        except (TimeoutError, asyncio.CancelledError):
            self._close_forward(entry, call, span, b"")
            return
        key = keys.header_of(call.metadata) or self._key_of(call.method, request)
        call.fail(OK, "")
        call.trailers = ()
        done = partial(self._close_forward, entry, call, span)
        self._forward(self._placement.owner_of(key), call, request, span, done)

    async def _forward_stream(self, owner: Member, entry: Entry, call: Call, request: bytes | None) -> bytes:
        method = entry.method
        self._forwards.add()
        span = self._tracer.start(method.name, "CLIENT", call.parent, remote=True)
        reply = await self._forwarder.stream(
            owner, call, request, context_of(span), streams_response=method.response_streaming
        )
        self._tracer.end_call(span, status=call.code_now.name, hop="forwarded", server=False)
        if take_marker(call, SERVED) is not None:
            call.hop = AWAY
        return reply

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
            return await handler.run(method, call, message)
        task = asyncio.current_task()
        assert task is not None
        self._endless.add(task)
        try:
            return await handler.run(method, call, message)
        finally:
            self._endless.discard(task)

    def _enter(self, entry: Entry, call: Call) -> Token[Scope | None]:
        """Begin the span of a call, which hands on to those it makes what is left of its deadline, and the like."""
        if call.span is None:
            call.span = self._tracer.start(entry.method.name, "SERVER", call.parent, remote=True)
        return current.set(call)


def _nothing() -> None:
    """Cancels nothing: the call has not been sent yet."""
