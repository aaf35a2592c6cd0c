"""A call that ends when its caller drops it, as grpc.aio's streams do: nothing else could bring it to its end.

Its subchannel, its connection and the deadlines hold a `WeakCall` in its place. A unary call needs none of this: its
response ends it.
"""

from asyncio import Future, get_running_loop
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any
from weakref import ref

import grpc

from onelane.client.call import ClientCall
from onelane.client.connection import Connection, Outgoing
from onelane.client.subchannel import Subchannel
from onelane.wire.framing import Headers

DROPPED_HERE = "Cancelled upon garbage collection!"


class HeldWeakly(ClientCall):
    """A call that ends when its caller drops it, as grpc.aio's do: then nothing else could bring it to its end.

    So its subchannel, its connection and the deadlines hold a `WeakCall` in its place.
    """

    def __init__(
        self,
        subchannel: Subchannel,
        headers: Headers,
        deserialize: Callable[[bytes], Any] | None,
        timeout: float | None,
        wait_for_ready: bool,
    ) -> None:
        self._loop = get_running_loop()
        self._held = WeakCall(self, wait_for_ready=wait_for_ready)
        super().__init__(subchannel, headers, deserialize, None, wait_for_ready)
        if timeout is not None:
            self._deadline_at = monotonic() + timeout
            self._deadline_slot = subchannel.deadlines.add(self._deadline_at, self._held)

    def __del__(self) -> None:
        # AttributeError: it was not made to the end. RuntimeError: its loop is closed.
        with suppress(AttributeError, RuntimeError):
            if self.status is None:
                # Later, and on its own loop: this runs in any thread, and in the middle of anything.
                self._loop.call_soon_threadsafe(self._stop, grpc.StatusCode.CANCELLED, DROPPED_HERE)

    @property
    def outgoing(self) -> Outgoing:
        return self._held

    def begin(self, connection: Connection) -> None:
        super().begin(connection)
        if self.stream is not None:
            self.stream.call = self._held

    def finish(self, code: Any, details: str, trailers: Any = ()) -> None:
        super().finish(code, details, trailers)
        if self.status is None:
            # It is opened again.
            return
        self._held.release()
        if self._deadline_at is not None:
            self._subchannel.deadlines.remove(self._deadline_slot, self._held)


class WeakCall:
    """Stands for a call without keeping it alive, unless told to. Once the call is dropped it does nothing."""

    __slots__ = ("_call", "_kept", "wait_for_ready")

    def __init__(self, call: ClientCall, *, wait_for_ready: bool) -> None:
        self._call = ref(call)
        self._kept: ClientCall | None = None
        self.wait_for_ready = wait_for_ready

    def keep(self) -> None:
        """Keep the call alive until it ends: it needs its caller no more."""
        self._kept = self._call()

    def release(self) -> None:
        self._kept = None

    def __call__(self) -> ClientCall | None:
        """The call; None once it is dropped."""
        return self._call()

    # See `onelane.client.connection.Outgoing`.

    @property
    def headers(self) -> Headers:
        call = self._call()
        return [] if call is None else call.headers

    @headers.setter
    def headers(self, headers: Headers) -> None:
        if (call := self._call()) is not None:
            call.headers = headers

    @property
    def is_over(self) -> bool:
        call = self._call()
        return call is None or call.is_over

    @property
    def can_repeat(self) -> bool:
        call = self._call()
        return call is not None and call.can_repeat

    def reset_attempt(self) -> None:
        if (call := self._call()) is not None:
            call.reset_attempt()

    def moves_to(self, subchannel: Any) -> None:
        if (call := self._call()) is not None:
            call.moves_to(subchannel)

    def begin(self, connection: Connection) -> None:
        if (call := self._call()) is not None:
            call.begin(connection)

    def begin_late(self, connection: Connection) -> None:
        if (call := self._call()) is not None:
            call.begin_late(connection)

    def answered(self, metadata: Any) -> None:
        if (call := self._call()) is not None:
            call.answered(metadata)

    def arrived(self, messages: list[bytes]) -> None:
        if (call := self._call()) is not None:
            call.arrived(messages)

    def answered_whole(self, reply: bytes, trailers: Any) -> None:
        if (call := self._call()) is not None:
            call.answered_whole(reply, trailers)

    def finish(self, code: Any, details: str, trailers: Any = ()) -> None:
        if (call := self._call()) is not None:
            call.finish(code, details, trailers)

    def abandon(self, details: str) -> None:
        if (call := self._call()) is not None:
            call.abandon(details)

    def expire(self) -> None:
        if (call := self._call()) is not None:
            call.expire()

    def cancel(self) -> bool:
        call = self._call()
        return call is not None and call.cancel()

    async def wait_ended(self) -> None:
        """Returns also once the call is dropped: waiting does not keep it alive."""
        ended = get_running_loop().create_future()
        if (call := self._call()) is not None:
            call.add_done_callback(partial(_set_ended, ended))
            del call
            await ended


def _set_ended(ended: Future[None], _: Any) -> None:
    if not ended.done():
        ended.set_result(None)
