"""The lane: all calls of one shard, from their arrival to their outcome, on one event loop; so nothing is locked.

Promises: whatever ends a handler, the call has a status; an exception's text stays in our log; each call is counted
once, by the shard that gave its answer. The states of a call and their table: `server/call_state`.

Steps that few calls need are parts that the lane is given: the owner of a key (`routing`), forwarding to a sibling
(`forwarding`), waiting for the turn of a key (`turn_queue`), refusing a call (`admission`).
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

import grpc

from onelane.core import keys
from onelane.core.handoff import Handoff
from onelane.core.hop import SERVED
from onelane.core.placement import Member, Placement
from onelane.core.trace_context import UNSAMPLED
from onelane.core.turns import Turn
from onelane.errors import AccessRefused, KeyMoves, LongKey, OnelaneError, OwnerAway, Refused
from onelane.lane.admission import Admission
from onelane.lane.forwarder import Forwarder
from onelane.lane.forwarding import Forwarding
from onelane.lane.kept_turns import KeptTurns
from onelane.lane.method_entry import Entry, HiddenEntry, is_ours
from onelane.lane.refusals import Refusals
from onelane.lane.routing import ARRIVING, Router
from onelane.lane.running import handle, hold_stream, peek, run, run_now, serve
from onelane.lane.turn_queue import TurnQueue
from onelane.server import status
from onelane.server.call import AWAY, DIRECT_HOP, OK, Call, Metadata
from onelane.server.call_state import FORWARDED
from onelane.server.listener import Work
from onelane.server.methods import Method
from onelane.server.payloads import parse
from onelane.state.journal import Journal
from onelane.telemetry.hot_keys import HotKeys
from onelane.telemetry.spans import SpanRecord
from onelane.telemetry.stats import Stats
from onelane.telemetry.tracer import Span, Tracer, context_of


class Waiting(NamedTuple):
    """The rest of a call that waits for the turn of its key. A tuple: a frozen dataclass takes five times as long to
    construct, for each call of a key that is busy."""

    entry: Entry
    key: str
    message: Any
    request: bytes | None
    """The message as it came, should the call have to go on to another shard."""
    span: Span
    """Of the wait, a child of the call's own."""


@dataclass(frozen=True, slots=True)
class Arriving:
    """The rest of a call that is held in a change of placement."""

    entry: Entry
    key: str
    epoch: int
    """Of a placement that is on its way; 0 where it is held for its key."""
    request: bytes
    span: Span


class Lane:
    """See the module. Owned by its event loop."""

    def __init__(
        self,
        *,
        router: Router,
        queue: TurnQueue,
        admission: Admission,
        forwarder: Forwarder,
        stats: Stats,
        tracer: Tracer,
        shows_runtime_calls: bool = False,
    ) -> None:
        """shows_runtime_calls: record calls of the runtime's own methods as those of the services."""
        self.name = router.shard
        self.queue = queue
        self.entries: dict[str, Entry] = {}
        self.in_flight = 0
        """Calls in progress, without the watches; see `Entry.is_watch`."""
        self.own_in_flight = 0
        """Calls in progress that came from clients, not from siblings; watches too."""
        self._watches = 0
        """Calls in progress that are watches."""
        self._hidden_in_flight = 0
        """Calls in progress, with the watches, that are not recorded."""
        self.received = 0
        self.draining = False
        self._begun: Collection[Call] = ()
        """Calls that are taken though the lane drains: they were begun before."""
        self.hot_keys = HotKeys()
        self._router = router
        self._admission = admission
        self.forwarding = Forwarding(forwarder, router, stats=stats, tracer=tracer, end=self.end)
        self.arrivals = queue.arrivals
        self._stats = stats
        self.tracer = tracer
        self._shows_runtime_calls = shows_runtime_calls
        self._idle = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        """None before the first call."""
        self.endless: dict[asyncio.Task[Any], Call] = {}
        self.refusals = Refusals(router.shard, stats)
        in_flight = stats.gauge("onelane.calls.in_flight", unit="{call}", description="Calls being worked on")
        in_flight.observe(lambda: self.in_flight + self._watches - self._hidden_in_flight)
        # Read for every call: one attribute each.
        self._homes = router.homes
        self._enter_turn: Callable[[str, str, str, Call], Turn | None] = queue.turns.enter
        self._leave_turn = queue.leave
        self._lateness = admission.lateness
        self._max_in_flight = admission.max_in_flight
        self._has_rates = admission.rates is not None
        self._saw_key = self.hot_keys.seen.append
        self.kept: KeptTurns | None = None
        """Of an app with durable state; see `keep_turns`."""

    def keep_turns(self, journal: Journal, *, app: str) -> KeptTurns:
        """From now on the state of a key is loaded before its turn, and its answers wait until it is on disk. Called
        before the first call arrives."""
        self.kept = KeptTurns(journal, self.queue, app=app, tracer=self.tracer, end=self.end, fail=self._fail)
        self.queue.keeper = self.kept
        self._enter_turn = self.kept.enter
        return self.kept

    @property
    def router(self) -> Router:
        return self._router

    @property
    def placement(self) -> Placement:
        return self._router.placement

    @property
    def forwarded_streams(self) -> Collection[Call]:
        """Calls with a stream of answers that siblings serve."""
        return self.forwarding.streams

    def place(self, placement: Placement) -> None:
        """Follow a newer placement; an older one is ignored. It ends a change of placement."""
        if self._router.place(placement):
            self.arrivals.placed(placement.epoch)
            self.arrivals.all_arrived()

    def change(self, handoff: Handoff) -> None:
        """Follow a change of placement that begins: calls that wait for the turn of a key that leaves go on to its next
        owner."""
        self._router.change(handoff)
        self.arrivals.placed(handoff.after.epoch)
        for key in self.queue.turns.held:
            owner = self._router.find_home(key)
            # A key that arrives has a turn here where that was given up as the key left: see `shard/given_up_keys`.
            if owner is not None and owner is not ARRIVING:
                for waiter in self.queue.turns.evict(key):
                    self._send_away(key, owner, waiter)

    def _send_away(self, key: str, owner: Member, waiter: Any) -> None:
        """Send on what waits for the turn of a key that leaves."""
        if isinstance(waiter, asyncio.Future):
            if not waiter.done():
                waiter.set_exception(KeyMoves(key, shard=self.name, owner=owner.name))
            return
        call: Call = waiter
        waiting = call.waiting
        call.waiting = None
        self.tracer.end(waiting.span, error="MOVED")
        self.tracer.end(call.span)
        call.span = None
        self.forwarding.send(owner, waiting.entry, call, waiting.request)

    def avoid(self, away: Mapping[str, str]) -> list[Member]:
        """Refuse calls to the keys of these shards, in place of those before: see `Router.away`. Returns those that are
        unresponsive only now, and ends the calls that were forwarded to these."""
        members = self._router.avoid(away)
        for member in members:
            self.forwarding.give_up(member)
        return members

    def add(self, method: Method) -> None:
        is_hidden = is_ours(method) and not self._shows_runtime_calls
        entry = HiddenEntry(method, ended=self._end_hidden) if is_hidden else Entry(method, self._stats)
        self.entries[method.path] = entry

    def home_of(self, method: Method, metadata: Metadata, message: bytes | None) -> str | None:
        """See `onelane.server.listener.Serving`."""
        return self._router.home_of(method, metadata, message)

    async def drain(self, begun: Collection[Call] = ()) -> None:
        """Refuse new calls of clients; wait until none is in flight. Calls that siblings forward are still served.

        begun: clients have begun these, and the lane has not got them yet: it takes them.
        """
        self._begun = frozenset(begun)
        self.begin_drain()
        while self.own_in_flight:
            self._idle.clear()
            await self._idle.wait()
            # An answer leaves, or is found to wait for its client, at the end of the turn of the loop.
            await asyncio.sleep(0)

    def begin_drain(self) -> None:
        """Refuse new calls of clients. A call that is cancelled from now on, and not by its client, is UNAVAILABLE."""
        self.draining = True
        self.end_watches()

    def end_watches(self) -> None:
        """Cancel the streams that end with the shard alone, such as health's and the topology's `Watch`."""
        for task, call in self.endless.items():
            call.end_early(*status.cut_off(self.name))
            task.cancel()

    # A call arrives

    def arrive(self, method: Method, call: Call, request: bytes | None) -> Work:
        """Take one call: the work to be started now, or None where it is DONE, FORWARDED or WAITING for its turn.

        Once it is DONE its outcome stands in `call`, and `call.answer` has been told the answer of a unary response.
        request: the message, or None where the client streams.
        """
        self.received += 1
        self.in_flight += 1
        if not call.trusted:
            self.own_in_flight += 1
        call.began = perf_counter()
        entry = self.entries[method.path]
        if entry.is_hidden:
            self._hidden_in_flight += 1
            call.span = UNSAMPLED
        lateness = self._lateness
        if not lateness.began_at:
            self._begin_round(call.began)
        try:
            if self.draining or self.in_flight > self._max_in_flight or call.began > lateness.refuse_from:
                self._admit(entry, call)
            if request is None and entry.asks_message and not keys.header_of(call.metadata):
                return self._start(entry, call, peek(self, entry, call))
            if call.metadata or request is None or entry.reads is None:
                owner, key, message = self._router.route(entry, call, request)
            else:
                # Written out: this is the path of nearly every call.
                message = parse(method, request)
                key = entry.reads(message)
                try:
                    owner = self._homes[key]
                except KeyError:
                    owner = self._router.find_home(key)
            if owner is not None:
                if key is None or not self._is_inside(key, call):
                    return self._send_on(owner, entry, call, key or "", request)
                if message is None and request is not None:
                    message = parse(method, request)
            if key is not None:
                self._saw_key(key)
                if self._has_rates:
                    self._admission.check_rate(key, call.began)
                if entry.takes_turns:
                    call.turn = self._enter_turn(key, method.name, call.chain, call)
                    if call.turn is None:
                        self._wait(entry, call, key, message, request)
                        return None
                else:
                    call.key = key
            elif entry.is_watch:
                self._admission.check_watch(entry.watches)
                self.count_watch(entry, 1)
            call.state = call.state.begin
            return run(self, entry, call, message, None) if entry.is_simple else self._begin(entry, call, message)
        except BaseException as error:
            self._fail(entry, call, error)
            return None

    def serve(self, method: Method, call: Call, request: bytes | None) -> Coroutine[Any, Any, bytes]:
        """`arrive`, and all that follows, for listeners that have a task for each call."""
        return serve(self, method, call, request)

    def refuse(self, method: Method, call: Call, error: BaseException) -> None:
        """End a call that the gate refuses, with the status of `error`. It is counted as any call."""
        # As `arrive` begins.
        self.received += 1
        self.in_flight += 1
        if not call.trusted:
            self.own_in_flight += 1
        call.began = perf_counter()
        entry = self.entries[method.path]
        if entry.is_hidden:
            self._hidden_in_flight += 1
            call.span = UNSAMPLED
        self._fail(entry, call, error)

    def cancel_forward(self, call: Call) -> None:
        if call.state is FORWARDED and call.cancel_forward is not None:
            call.cancel_forward()

    def _end_hidden(self) -> None:
        self._hidden_in_flight -= 1

    def _begin_round(self, now: float) -> None:
        """This is the first call since the loop looked at its sockets."""
        self._lateness.begin(now, self.received)
        if self._loop is None:
            # Asked once: CPython 3.11 asks the system for the number of the process with it.
            self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._end_short_round)

    def _end_short_round(self) -> None:
        """End a round that has left nothing behind. What the calls of another have made ready has not run yet."""
        assert self._loop is not None
        now = perf_counter()
        if self.in_flight or not self._lateness.is_short(now):
            self._loop.call_soon(self._end_round)
        else:
            # Else the loop would go round once more for each call that comes alone.
            self._lateness.end(now)

    def _end_round(self) -> None:
        self._lateness.end(perf_counter())

    def check_serves(self, owner: Member, call: Call) -> None:
        try:
            self._router.check_serves(owner)
        except OwnerAway as error:
            self.refusals.add(call, error.reason)
            raise

    def refuses(self, method: Method, call: Call) -> bool:
        """See `onelane.server.listener.Serving`. The call is looked at again when it arrives."""
        call.began = perf_counter()
        try:
            if self.draining or self.in_flight >= self._max_in_flight or call.began > self._lateness.refuse_from:
                self._admit(self.entries[method.path], call, coming=1)
        except OnelaneError as error:
            self.refuse(method, call, error)
            return True
        return False

    def _admit(self, entry: Entry, call: Call, *, coming: int = 0) -> None:
        """coming: calls that are not counted yet."""
        self._admission.check(
            call.began,
            in_flight=self.in_flight + coming,
            received=self.received,
            has_reserve=entry.is_ours or (call.trusted and call.hop == DIRECT_HOP),
            is_draining=self.draining and not self._goes_on(entry, call),
        )

    def _goes_on(self, entry: Entry, call: Call) -> bool:
        """Whether a call is taken also while the lane drains."""
        return call.trusted or call in self._begun or entry.method.path.startswith("/grpc.health.")

    # It waits for the turn of its key

    def _wait(self, entry: Entry, call: Call, key: str, message: Any, request: bytes | None) -> None:
        """Its span begins now, and has the wait as a child."""
        call.state = call.state.wait
        if call.span is None:
            call.span = self.tracer.start(entry.method.name, "SERVER", call.parent, remote=True)
        span = self.tracer.start("turn", "INTERNAL", context_of(call.span))
        call.waiting = Waiting(entry, key, message, request, span)

    def resume(self, call: Call) -> Work:
        """Go on with a call whose turn has come (`call.proceed`), or that is held no longer."""
        waiting = call.waiting
        call.waiting = None
        self.tracer.end(waiting.span)
        if isinstance(waiting, Arriving):
            return self._look_again(waiting, call)
        call.state = call.state.begin
        return self._begin(waiting.entry, call, waiting.message)

    def withdraw(self, call: Call, *, late: bool) -> None:
        """End a call that waits for its turn: its client has cancelled it, or the shard cuts it off, or (late) its
        deadline is about to pass."""
        waiting = call.waiting
        call.waiting = None
        self.tracer.end(waiting.span, error="DEADLINE_EXCEEDED" if late else "CANCELLED")
        if late:
            call.fail(grpc.StatusCode.DEADLINE_EXCEEDED, self._why_late(waiting, call))
        else:
            status.cancelled(call, shard=self.name, draining=self.draining)
        if isinstance(waiting, Arriving):
            self.arrivals.withdraw(call, key=waiting.key, epoch=waiting.epoch)
        else:
            self.queue.turns.withdraw(waiting.key, call)
        self.end(waiting.entry, call, b"")

    def _why_late(self, waiting: Waiting | Arriving, call: Call) -> str:
        if isinstance(waiting, Arriving):
            return f"the deadline passed while the state of its key was on its way to shard {self.name}"
        return self.queue.why_late(waiting.entry.method.name, waiting.key, call.chain)

    # Its key is served elsewhere, or arrives here

    def _is_inside(self, key: str, call: Call) -> bool:
        """Whether a call is one of the chain that holds the turn of a key which leaves: only here can it end."""
        return self._router.handoff is not None and self.queue.turns.is_inside(key, call.chain)

    def _send_on(self, owner: Member, entry: Entry, call: Call, key: str, request: bytes | None) -> Work:
        """Take a call whose key this lane does not serve now. owner: ARRIVING where it will."""
        if owner is ARRIVING or self._router.is_ahead(call):
            return self._hold(entry, call, key, request)
        self._router.check_hop(call)
        if self._router.away:
            self.check_serves(owner, call)
        if request is None or entry.method.response_streaming:
            return self._start(entry, call, self.forwarding.stream(owner, entry, call, request))
        self.forwarding.send(owner, entry, call, request)
        return None

    def _hold(self, entry: Entry, call: Call, key: str, request: bytes | None) -> Work:
        """Hold a call until the state of its key is here, or the placement by which a sibling has sent it."""
        epoch = call.epoch if self._router.is_ahead(call) else 0
        if request is None or entry.method.response_streaming:
            return self._start(entry, call, hold_stream(self, entry, call, key, epoch, request))
        if not epoch and (holder := self._router.holder_of(key, call)) is not None:
            self.forwarding.send(holder, entry, call, request, by_last_placement=True)
            return None
        call.state = call.state.wait
        span = self.tracer.start("arrival", "INTERNAL", call.parent)
        call.waiting = Arriving(entry, key, epoch, request, span)
        if epoch:
            self.arrivals.hold_for_epoch(epoch, call)
        else:
            self.arrivals.hold_for_key(key, call)
        return None

    def _look_again(self, held: Arriving, call: Call) -> Work:
        """Take a call that was held, as if it came only now."""
        entry = held.entry
        try:
            owner, key, message = self._router.route(entry, call, held.request)
            assert key is not None
            if owner is not None:
                return self._send_on(owner, entry, call, key, held.request)
            self._saw_key(key)
            if self._has_rates:
                self._admission.check_rate(key, perf_counter())
            if entry.takes_turns:
                call.turn = self._enter_turn(key, entry.method.name, call.chain, call)
                if call.turn is None:
                    self._wait(entry, call, key, message, held.request)
                    return None
            else:
                call.key = key
            call.state = call.state.begin
            return self._begin(entry, call, message)
        except BaseException as error:
            self._fail(entry, call, error)
            return None

    # It runs

    def _start(self, entry: Entry, call: Call, work: Coroutine[Any, Any, bytes]) -> Work:
        call.state = call.state.begin
        return run(self, entry, call, None, work)

    def _begin(self, entry: Entry, call: Call, message: Any) -> Work:
        """Run a call that this shard owns, and that has its turn where it needs one."""
        if entry.is_simple:
            return run(self, entry, call, message, None)
        if entry.method.is_immediate:
            run_now(self, entry, call, message)
            return None
        return run(self, entry, call, message, handle(self, entry, call, message))

    def count_watch(self, entry: Entry, number: int) -> None:
        """Count a call among the watches instead of among the calls in flight, or (-1) the other way round."""
        entry.watches += number
        self._watches += number
        self.in_flight -= number

    # It ends

    def _fail(self, entry: Entry, call: Call, error: BaseException) -> None:
        """End a call that could not begin, or not be forwarded, with the status of `error`."""
        if isinstance(error, Refused | LongKey):
            self.refusals.add(call, error.reason)
        elif isinstance(error, AccessRefused):
            # The audit log has a line of its own.
            self.refusals.count(error.reason)
        if call.span is None:
            call.span = self.tracer.start(entry.method.name, "SERVER", call.parent, remote=True)
        # It would keep the error's traceback alive, and that the call.
        call.cancel_forward = None
        status.failed(call, error, method=entry.method, shard=self.name)
        self.end(entry, call, b"")

    def untaken(self, change: int, *, trusted: bool) -> None:
        """See `onelane.server.listener.Serving`."""
        self.in_flight += change
        if not trusted:
            self.own_in_flight += change
        if self.draining and not self.own_in_flight:
            self._idle.set()

    def end(self, entry: Entry, call: Call, reply: bytes) -> None:
        """Count a call that has ended, end its turn, and answer it."""
        if self.kept is not None and call.turn is not None and self.kept.holds(entry, call, reply):
            # Called again once the answer may leave.
            return
        call.state = call.state.end
        self.in_flight -= 1
        if not call.trusted:
            self.own_in_flight -= 1
        if self.draining and not self.own_in_flight:
            self._idle.set()
        if call.turn is not None:
            self._leave_turn(call.turn)
            call.turn = None
        try:
            if call.hop is not AWAY:
                seconds = perf_counter() - call.began
                duration = entry.count(call.code_now, seconds)
                span = call.span
                if isinstance(span, SpanRecord):
                    self.tracer.end_call(span, status=call.code_now.name, hop=call.hop, server=True)
                    if span.sampled:
                        duration.add_exemplar(seconds, span)
                if call.debug:
                    call.trailers = (*call.trailers, *call.debug)
                if call.trusted:
                    call.trailers = (*call.trailers, (SERVED, self.name))
        finally:
            # Also where counting has failed: the client must not wait for ever.
            call.answer(reply if call.code_now is OK else b"")
