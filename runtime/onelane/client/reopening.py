"""Opens a server stream again whose key has moved to another shard (the trailer `onelane-moved`), for a caller that
reads on without noticing.

Promises: the same request, metadata, trace and deadline; it waits a moment for the newer placement, and longer each
time where the stream is ended again and again; nothing is opened before the caller has read what came, so that a reader
who lags behind holds no more than one stream's window. Whatever else ends a stream, ends it for its caller.
Its part of a call is told of the end of each stream, and nothing else: a stream that does not move pays nothing.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, Protocol

import grpc
import grpc.aio

from onelane.client.call import ClientCall
from onelane.client.dropped_call import WeakCall
from onelane.client.peer import Peer
from onelane.client.retry import NO_SIDE_EFFECTS, SAFE_RETRY
from onelane.client.ring_router import RingRouter
from onelane.core.backoff import backoff_s
from onelane.core.moved import Moved, moved_epoch
from onelane.wire.framing import Headers

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
AWAIT_PLACEMENT_S = 0.25
"""How long to wait for the placement by which the key has moved. Without it the stream takes a hop."""
STABLE_S = 5.0
"""A stream that stood for so long, and is ended, is opened again at once."""
FREE_MOVES = 2
"""Moves in a row that cost nothing of the retry budget: one, and that of a shard which leaves and was on the way."""
BASE_S, CAP_S = 0.05, 2.0
"""The back-off of streams that do not stand for so long."""


@dataclass(frozen=True, slots=True)
class Streams:
    """How the server streams of a channel follow their keys."""

    reopen: bool | None = None
    """Open them again where their key has moved: True for every method, False for none; None for those without side
    effects, by the `idempotency_level` of their proto."""
    marks: bool = False
    """Give the reader an `onelane.Moved` in between."""

    def reopens(self, idempotency_level: str) -> bool:
        """Whether the streams of a method are opened again."""
        return idempotency_level == NO_SIDE_EFFECTS if self.reopen is None else self.reopen


FOLLOW = Streams()


def passing_marks(deserialize: Callable[[bytes], Any] | None) -> Callable[[Any], Any] | None:
    """A deserializer that lets marks pass."""
    return None if deserialize is None else lambda m: m if type(m) is Moved else deserialize(m)


class FollowedMethod(Protocol):
    """The method of a stream, as far as its reopening needs it."""

    def sender_for(self, call: ClientCall, key: str | None) -> Any:
        """The multi-callable of the channel that the call goes to now."""

    def renewed(self, headers: Headers) -> Headers:
        """The headers of a call that is sent again after a while."""

    def stream_ended(self, call: ClientCall, code: str, span: Any, *, has_moved: bool) -> None:
        """Let the health of its endpoint count the end of one stream of a call."""

    def reopens(self, span: Any, epoch: int, after_s: float) -> None:
        """Record that a stream will be opened again."""


class Reopening:
    """The part of one call, which has it as its `retry`. It does not keep the call alive."""

    def __init__(
        self,
        method: FollowedMethod,
        router: RingRouter,
        peer: Peer,
        call: ClientCall,
        *,
        key: str | None,
        span: Any,
        credentials: grpc.CallCredentials | None,
        marks: bool,
    ) -> None:
        self._method = method
        self._router = router
        self._peer = peer
        self._key = key
        self._span = span
        self._credentials = credentials
        self._marks = marks
        self._headers = call.headers
        """Without those of credentials, which are asked for anew."""
        self._context = copy_context()
        """Of the caller: what it asserts of its client is written anew."""
        self._opened_at = monotonic()
        self._epoch = -1
        """Of the last move."""
        self._moves = 0
        """In a row, each of a stream that did not stand for `STABLE_S`."""
        self._failures = 0
        """In a row, of openings after a move."""
        self._is_opening = False
        """It was opened again, and nothing has come yet, as far as is known."""

    def __call__(self, call: Any, code: grpc.StatusCode, trailers: Any) -> bool:
        """One stream of the call has ended; whether another will be opened."""
        if code is not UNAVAILABLE:
            return False
        epoch = moved_epoch(trailers)
        pause_s = self._pause_after_failure(call) if epoch is None else self._pause_after_move(epoch)
        if pause_s is None:
            return False
        has_read_all = not call.messages
        self._method.stream_ended(call, code.name, self._span, has_moved=epoch is not None)
        call.reset_attempt()
        self._router.between_attempts.add(call.outgoing)
        if epoch is not None:
            self._method.reopens(self._span, epoch, pause_s)
            if self._marks:
                call.put(Moved(epoch))
        open_again = partial(self._open_placed, call.outgoing, pause_s)
        if has_read_all:
            open_again()
        else:
            call.when_drained = open_again
        return True

    # When

    def _pause_after_move(self, epoch: int) -> float | None:
        """Seconds to wait until the stream is opened again; None: it is not."""
        is_steady = monotonic() - self._opened_at >= STABLE_S
        self._moves = 1 if is_steady else self._moves + 1
        is_repeated = self._moves > FREE_MOVES and epoch <= self._epoch
        self._epoch, self._failures, self._is_opening = max(epoch, self._epoch), 0, True
        if is_repeated and not self._may_try_again():
            return None
        return self._backoff_s(self._moves - 1)

    def _pause_after_failure(self, call: ClientCall) -> float | None:
        """The shard where it was opened again may have gone as well: then nothing has come of it."""
        self._is_opening = self._is_opening and not call.has_answered
        if not self._is_opening or not self._may_try_again():
            return None
        self._failures += 1
        return None if self._failures >= SAFE_RETRY.attempts else self._backoff_s(self._failures)

    def _may_try_again(self) -> bool:
        self._peer.budget.failed()
        return self._peer.budget.allows

    def _backoff_s(self, number: int) -> float:
        """number: of the try, from 0, which is at once."""
        if not number:
            return 0.0
        return backoff_s(number - 1, base_s=BASE_S, cap_s=CAP_S, rng=self._peer.rng, jitter=(0.5, 1.0))

    # Where

    def _open_placed(self, held: WeakCall, pause_s: float) -> None:
        """Open the stream again after a pause, by the placement of the move if that comes soon."""
        if pause_s:
            asyncio.get_running_loop().call_later(pause_s, self._open_placed, held, 0.0)
        else:
            self._router.when_placed(self._epoch, partial(self._open, held), AWAIT_PLACEMENT_S)

    def _open(self, held: WeakCall) -> None:
        call = held()
        if call is None or call.status is not None:
            return
        self._router.between_attempts.discard(held)
        self._opened_at = monotonic()
        call.headers = self._context.run(self._method.renewed, self._headers)
        # Where the channel closes, the call has ended with UNAVAILABLE.
        with suppress(grpc.aio.UsageError):
            self._method.sender_for(call, self._key).send_again(call, self._credentials)
