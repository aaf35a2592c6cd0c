"""The output gate: turns of keys with durable state. Their state is loaded before they begin, and what they have to say
leaves when what it rests on is on disk (decision 0024).

Promises: the lane never waits. A call whose key is not in memory waits as for its turn; a call whose answer must wait
has ended but for its answer, and the turn of its key goes on to the next. Whatever fails to be kept is answered
UNAVAILABLE.
Leaves out: what is written and when, see `state/journal`. An app without durable state has no object of this class.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from functools import partial
from time import time
from typing import Any

import grpc

from onelane.client.peer import Peer
from onelane.core.call_ids import NestedIds
from onelane.core.context import TurnContext, current_call
from onelane.core.turns import Turn
from onelane.errors import NotKept, OnelaneError, RepeatedTooSoon
from onelane.lane.method_entry import Entry
from onelane.lane.remembered import CallId, check_same, digest_of, id_of, remember, repeat
from onelane.lane.turn_queue import TurnQueue
from onelane.server.call import Call
from onelane.server.call_state import WAITING
from onelane.state.batch import Leave
from onelane.state.journal import Journal
from onelane.state.store import RememberedAnswer, StoredReminder
from onelane.telemetry.spans import SpanRecord
from onelane.telemetry.tracer import Span, Tracer, context_of

log = logging.getLogger("onelane.state")
End = Callable[[Entry, Call, bytes], None]
Fail = Callable[[Entry, Call, BaseException], None]


class KeptTurns:
    """See the module. Owned by one lane."""

    def __init__(self, journal: Journal, queue: TurnQueue, *, app: str, tracer: Tracer, end: End, fail: Fail) -> None:
        """end, fail: of the lane, for calls that it has given to `holds` and `begin`."""
        self._app = app
        self.journal = journal
        self._queue = queue
        self.tracer = tracer
        self.end = end
        self._fail = fail
        self._changed: set[Turn] = set()
        """Turns in which a call has ended that may have changed their key, and that go on."""
        self._early: dict[Turn, list[Leave]] = {}
        """Turn → what its holder had to say, who has ended before a call inside the turn."""
        self._published: dict[Turn, list[Callable[[], None]]] = {}
        """Turn → what was published in it."""

        self._call_ids: dict[Call, CallId] = {}
        """Calls in progress whose answers will be remembered."""
        self._answers: dict[Turn, list[RememberedAnswer]] = {}
        """Turn → the answers that are to be kept with its changes."""
        self._nested_ids: dict[Call, NestedIds] = {}
        """Call in progress that has an id → those of the calls that it makes."""
        self.failed_runs: dict[Turn, int] = {}
        """Turn of a reminder → how often its run has failed. It runs again under the same id."""
        self._given_up: set[str] = set()
        """Keys that have left this life in the middle of a turn, which goes on."""

    # A turn begins

    def enter(self, key: str, method: str, chain: str, call: Call) -> Turn | None:
        """As `Turns.enter`, for a call; None also where the state of the key is to be loaded first."""
        has_id = bool(call.metadata) and id_of(call.metadata) is not None
        turn = self._queue.turns.enter(key, method, chain, call)
        if turn is None:
            return None
        if turn.inside == 1 and key not in self.journal.residents:
            self._load(call, turn, is_first=True)
            return None
        if has_id and turn not in self.failed_runs:
            # The lane has to put it aside first, with its message.
            asyncio.get_running_loop().call_soon(self._begin, call, turn, True, context=Context())
            return None
        return turn

    def start(self, call: Call, turn: Turn) -> None:
        """Start a call that has waited for this turn, once the state of the key is in memory."""
        resident = self.journal.residents.get(turn.key)
        if resident is None or resident.is_lost:
            self.journal.drop(turn.key)
            self._load(call, turn, is_first=False)
        else:
            self._begin(call, turn, False)

    def _load(self, call: Call, turn: Turn, *, is_first: bool) -> None:
        """is_first: the turn came without a wait, and the call does not know it yet."""
        span = None if self.tracer.idle else self.tracer.start("load", "INTERNAL", call.parent)
        self.journal.load(turn.key, partial(self._loaded, call, turn, is_first, span))

    def _loaded(self, call: Call, turn: Turn, is_first: bool, span: Span, error: OnelaneError | None) -> None:
        self.tracer.end(span, error="" if error is None else type(error).__qualname__)
        self._begin(call, turn, is_first, error)

    def _begin(self, call: Call, turn: Turn, is_first: bool, error: OnelaneError | None = None) -> None:
        """Start a call that the lane has put aside, or answer it from memory, or with the error of its load."""
        if call.state is not WAITING:
            # It was withdrawn, and with it the turn that it knew.
            if is_first:
                self._queue.leave(turn)
            return
        call.turn = turn
        entry = call.waiting.entry
        if error is None and turn.key in self._given_up:
            error = _has_left()
        try:
            if error is not None:
                raise error
            answer = self._remembered(call, turn)
        except OnelaneError as failure:
            self._end_wait(call, type(failure).__qualname__)
            self._fail(entry, call, failure)
            return
        if answer is None:
            call.proceed()
            return
        self._end_wait(call)
        self.journal.metrics.repeats.add()
        self.end(entry, call, repeat(answer, call))

    def _end_wait(self, call: Call, error: str = "") -> None:
        self.tracer.end(call.waiting.span, error=error)
        call.waiting = None

    def _remembered(self, call: Call, turn: Turn) -> RememberedAnswer | None:
        """The answer to a call that repeats another; None of one that is to run, whose answer will be remembered where
        it has an id.

        Raises:
            BadIdempotencyKey: its id belongs to another request.
        """
        waiting = call.waiting
        name = id_of(call.metadata) if call.metadata and waiting.entry.changes_state else None
        if name is None:
            return None
        call_id = CallId(name, digest_of(waiting.entry.method.name, waiting.message, call.identity))
        answer = self.journal.answer_of(turn.key, name)
        if answer is None and turn.inside > 1:
            answer = self._answer_in(turn, call_id)
        if answer is None:
            self._call_ids[call] = call_id
        else:
            check_same(answer.digest, call_id)
        return answer

    def _answer_in(self, turn: Turn, call_id: CallId) -> RememberedAnswer | None:
        """The answer to a call inside a turn that goes on, where it repeats another one inside.

        Raises:
            RepeatedTooSoon: that one runs still.
            BadIdempotencyKey: its id belongs to another request.
        """
        for call, running in self._call_ids.items():
            if call.turn is turn and running.id == call_id.id:
                check_same(running.digest, call_id)
                raise RepeatedTooSoon(call_id.id)
        return next((answer for answer in self._answers.get(turn, ()) if answer.id == call_id.id), None)

    async def prepare(self, turn: Turn) -> None:
        """Load the state of a turn that was taken by hand, and wait until all before it is on disk: what is sent inside
        the turn cannot be held back one by one, as that of a call can.

        Raises:
            OnelaneError: the state cannot be loaded.
        """
        while turn.inside == 1:
            resident = self.journal.residents.get(turn.key)
            if resident is None or resident.is_lost:
                self.journal.drop(turn.key)
                await self._load_for_hand(turn.key)
            try:
                await self.journal.kept(turn.key)
            except NotKept:
                continue
            return

    async def _load_for_hand(self, key: str) -> None:
        loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.journal.load(key, partial(_settle, loaded))
        await loaded

    # A turn ends

    def holds(self, entry: Entry, call: Call, reply: bytes) -> bool:
        """A call with a turn has ended but for its answer: end the turn. Whether its answer must wait; then the call is
        ended later. Where its changes cannot be kept it has the status of that."""
        turn, call.turn = call.turn, None
        assert turn is not None
        held = HeldAnswer(self, entry, call, reply)
        try:
            if self._nested_ids:
                self._nested_ids.pop(call, None)
            is_nested = turn.is_held_by(call.chain)
            if self._call_ids and (call_id := self._call_ids.pop(call, None)) is not None:
                if _may_run_again(call, is_nested=is_nested):
                    return self._undo(turn, held, is_nested=is_nested)
                self._answers.setdefault(turn, []).append(remember(call_id, call, reply, time()))
            waits = self._ended(turn, held, changes=entry.changes_state, is_nested=is_nested)
            if waits:
                held.start_span()
            return waits
        except OnelaneError as error:
            refuse(call, error)
            return False
        finally:
            self._queue.leave(turn)

    def _undo(self, turn: Turn, held: "HeldAnswer", *, is_nested: bool) -> bool:
        """Drop what the turn has changed, so that a repeat of its call may run. Whether the answer, which has the
        status that its handler chose, must wait for the turns before."""
        try:
            waits = self.journal.is_pending(turn.key) and self.journal.rest_on(turn.key, held)
            if waits:
                held.start_span()
            return waits
        finally:
            # Also where what it rests on has failed: the turn is over, and whoever waits for it is to be told.
            self.journal.lose(turn.key)
            with suppress(NotKept):
                self._ended(turn, lambda _: None, changes=True, is_nested=is_nested)

    def end_by_hand(self, turn: Turn, *, is_nested: bool) -> "asyncio.Future[None] | None":
        """A turn that was taken by hand ends; its caller must leave it. Done once its changes are on disk; None where
        there are none to wait for."""
        on_disk: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            if turn.key not in self.journal.residents:
                self._drop(turn)
                raise _has_left()
            if not self._ended(turn, partial(_settle, on_disk), changes=True, is_nested=is_nested):
                return None
        except OnelaneError as error:
            on_disk.set_exception(error)
        on_disk.add_done_callback(_retrieve)
        return on_disk

    def _ended(self, turn: Turn, leave: Leave, *, changes: bool, is_nested: bool) -> bool:
        """Whether `leave` is called later."""
        key, journal = turn.key, self.journal
        if key not in journal.residents:
            # It never began, as its state could not be loaded; or its key has left before it ended.
            self._drop(turn)
            if key in self._given_up:
                raise _has_left()
            return False
        if turn.inside > 1:
            if changes:
                self._changed.add(turn)
            if is_nested:
                return journal.rest_on(key, leave)
            self._early.setdefault(turn, []).append(leave)
            return True
        changes = changes or turn in self._changed
        self._changed.discard(turn)
        answers = self._answers.pop(turn, ()) if self._answers else ()
        if turn not in self._early and turn not in self._published:
            return self._end_turn(key, leave, answers, changes=changes)
        leave = partial(_leave_all, self._published.pop(turn, ()), [*self._early.pop(turn, ()), leave])
        try:
            if not self._end_turn(key, leave, answers, changes=changes):
                leave(None)
        except OnelaneError as error:
            leave(error)
        return True

    def _drop(self, turn: Turn) -> None:
        """Nothing of a turn is kept: what waits for it fails."""
        if turn.inside > 1:
            return
        self._changed.discard(turn)
        self._answers.pop(turn, None)
        self._published.pop(turn, None)
        for leave in self._early.pop(turn, ()):
            leave(_has_left())

    def _end_turn(self, key: str, leave: Leave, answers: Sequence[RememberedAnswer], *, changes: bool) -> bool:
        try:
            return self.journal.end_turn(key, leave, answers) if changes else self.journal.rest_on(key, leave)
        finally:
            self.journal.turn_over(key)

    # A turn that does not end

    def give_up(self, key: str) -> None:
        """The key leaves in the middle of its turn: nothing of the turn is kept, nor what it sends from now on."""
        self._given_up.add(key)
        # At once: where the turn ends while the key still waits to leave, its end must find nothing to write.
        self.journal.drop(key)

    def given_up_ended(self, key: str) -> None:
        """The turn with which the key had left has ended."""
        self._given_up.discard(key)

    # What is sent inside a turn

    def attend(self, peer: Peer) -> None:
        """From now on calls to a peer wait for what they rest on, and have the ids of the turns that make them."""
        peer.before_sending, peer.nested_id = self.before_sending, self.nested_id

    @property
    def in_turn(self) -> bool:
        """Whether this code runs in a turn of a key with durable state."""
        return next(self._turns_of_caller(), None) is not None

    def defer(self, send: Callable[[], None]) -> None:
        """Call `send` once the innermost turn in which this code runs is on disk, and not at all where it fails."""
        self._published.setdefault(next(self._turns_of_caller()), []).append(send)

    def turn_of(self, key: str) -> Turn | None:
        """The turn of `key` in which this code runs.

        Raises:
            NotKept: it was given up.
        """
        turn = next((turn for turn in self._turns_of_caller() if turn.key == key), None)
        if turn is not None and key in self._given_up:
            raise _has_left()
        return turn

    def set_reminders(self, turn: Turn, reminders: Mapping[str, StoredReminder]) -> None:
        """Replace the reminders of the key of a turn, by their ids. It takes effect as the other changes of the turn
        do, also where its method has no side effects."""
        self.journal.residents[turn.key].reminders = reminders
        self._changed.add(turn)

    def before_sending(self) -> Callable[[], Awaitable[None]] | None:
        """What a call that is made now must wait for: the earlier turns of the keys in whose turns this code runs. None
        where all of them are on disk. The wait fails in a turn that was given up."""
        pending, given_up = self.journal.is_pending, self._given_up
        keys = [turn.key for turn in self._turns_of_caller() if pending(turn.key) or turn.key in given_up]
        return partial(self._kept, keys) if keys else None

    async def _kept(self, keys: list[str]) -> None:
        for key in keys:
            if key in self._given_up:
                raise _has_left()
            await self.journal.kept(key)

    def nested_id(self, peer: str, method: str) -> str | None:
        """The id of a call that is made now, inside a turn whose own call has an id; None where it has none. peer: the
        app that is called, "" for this one. method: `pkg.Service/Method`."""
        context = current_call()
        while isinstance(context, TurnContext):
            context = context.outer
        if not isinstance(context, Call) or context.turn is None or not context.metadata:
            return None
        ids = self._nested_ids.get(context)
        if ids is None:
            name = id_of(context.metadata)
            if name is None:
                return None
            client = context.identity.subject if context.identity is not None else ""
            failed_runs = str(self.failed_runs.get(context.turn, 0))
            outer = (self._app, context.method, context.turn.key, client, name, failed_runs)
            ids = self._nested_ids[context] = NestedIds(*outer)
        return ids.next(peer, method)

    def _turns_of_caller(self) -> Iterator[Turn]:
        """The turns of this lane in which this code runs, innermost first."""
        context: Any = current_call()
        held, residents = self._queue.turns.held, self.journal.residents
        while context is not None:
            turn: Turn | None = getattr(context, "turn", None)
            # A task that has outlived the turn still has its context.
            if (
                turn is not None
                and held.get(turn.key) is turn
                and (turn.key in residents or turn.key in self._given_up)
            ):
                yield turn
            context = getattr(context, "outer", None)


class HeldAnswer:
    """The answer of a call that has ended, until what it rests on is on disk. Called to let it leave."""

    __slots__ = ("_call", "_end", "_entry", "_reply", "_span", "_tracer")

    def __init__(self, gate: KeptTurns, entry: Entry, call: Call, reply: bytes) -> None:
        self._tracer, self._end = gate.tracer, gate.end
        self._entry, self._call, self._reply = entry, call, reply
        self._span: Span = None

    def start_span(self) -> None:
        """Record from now on how long it waits."""
        if isinstance(self._call.span, SpanRecord):
            self._span = self._tracer.start("commit", "INTERNAL", context_of(self._call.span))

    def __call__(self, error: OnelaneError | None) -> None:
        self._tracer.end(self._span, error="" if error is None else type(error).__qualname__)
        if error is not None:
            refuse(self._call, error)
        self._end(self._entry, self._call, self._reply)


def _may_run_again(call: Call, *, is_nested: bool) -> bool:
    """Of a call with an id that has ended: whether it was cut off, or its status says that the client should try again.
    As an answer that is remembered it would fail each repeat, also of a call that only met a shard which had died.

    is_nested: inside a turn of its caller, who may take that status and go on: the turn is not undone for it.
    """
    if call.is_cancelled or call.early_status is not None:
        return True
    return call.code_now is grpc.StatusCode.UNAVAILABLE and not is_nested


def _has_left() -> NotKept:
    return NotKept("its key has moved to another shard")


def refuse(call: Call, error: OnelaneError) -> None:
    """Give a call the status of changes that could not be kept, whatever status its handler chose."""
    call.trailers = ()
    call.fail(grpc.StatusCode[error.status], str(error))


def _leave_all(published: Sequence[Callable[[], None]], leaving: Sequence[Leave], error: OnelaneError | None) -> None:
    if error is None:
        for send in published:
            try:
                send()
            except OnelaneError:
                # The caller of `publish` has gone on.
                log.exception("state.not_published")
    for leave in leaving:
        leave(error)


def _settle(future: "asyncio.Future[None]", error: OnelaneError | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


def _retrieve(future: "asyncio.Future[None]") -> None:
    """Its turn may be over without anybody who awaits it: its block is closed."""
    if not future.cancelled():
        future.exception()
