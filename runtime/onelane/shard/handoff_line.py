"""What goes from one life to another in a change of placement: the state of its keys, batch by batch.

Promises: each batch is sent until it is acknowledged, or its receiver is dead; the last message, which says that no key
is left, follows once all of them are. Several batches are under way: where shards are busy an acknowledgement takes
longer than all the work for its batch. Between two batches the lane serves its calls.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import grpc.aio

from onelane.core.handoff import Handoff
from onelane.core.placement import Member
from onelane.shard.handoff_span import HandoffSpan
from onelane.v1 import siblings_pb2

log = logging.getLogger("onelane.handoff")
BATCH_KEYS = 32
"""Of one message, at most: its work holds the lane for less than half a millisecond."""
UNDER_WAY = 16
"""Batches of one line that are sent, and not acknowledged yet."""
RESEND_S = 0.05
"""Before a batch that has failed is sent again."""


class SendingLife(Protocol):
    """The life that hands over: its `HandoffCarrier`."""

    @property
    def life(self) -> int:
        """Its number."""

    async def release(self, keys: Sequence[str]) -> None:
        """The last turns of these keys are over: tell the service, and have their durable state on disk alone."""

    def pack(self, keys: Sequence[str], request: siblings_pb2.HandOverRequest) -> None:
        """Put the first of these keys, which have been released, with their state into a message, as many as fit."""

    def acknowledged(self, change: Handoff, life: int, moved: Sequence[siblings_pb2.MovedKey]) -> None:
        """The receiver has these keys, with this state."""

    async def give_way(self, received: int) -> int:
        """Leave the lane to its calls between two pieces of work; for longer where it has received more than so many.
        Returns how many it has received."""

    def channel(self, to: Member) -> Any:
        """To the receiver."""


class HandoffLine:
    """See the module."""

    def __init__(self, carrier: SendingLife, change: Handoff, to: Member, span: HandoffSpan) -> None:
        self._carrier = carrier
        self._span = span
        self._change = change
        self.to = to
        self._waiting: set[str] = set()
        """Keys that are not packed yet."""
        self._keys: deque[str] = deque()
        """These in the order in which they came, and others that have been packed since."""
        self._first: deque[str] = deque()
        """Those of them that are called."""
        self._is_done = False
        self._packing: asyncio.Task[None] | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(UNDER_WAY)
        self._repeats = 0
        self.waits_for_store = False
        """The durable state of keys is about to be on disk alone."""

    @property
    def is_unanswered(self) -> bool:
        """Something was sent, or is sent again and again, and has no answer."""
        return bool(self._sending)

    @property
    def has_more(self) -> bool:
        """Something is to be sent yet."""
        return self._is_done or bool(self._waiting) or self._packing is not None

    def send(self, keys: Iterable[str]) -> None:
        self._span.begin()
        waiting = self._waiting
        for key in keys:
            waiting.add(key)
            self._keys.append(key)
        self._go_on()

    def hurry(self, key: str) -> None:
        """A call of a key is held by the receiver: pack it next. Of any key: nothing where it does not wait here."""
        if key in self._waiting:
            self._first.append(key)

    def send_done(self) -> None:
        """Say that no key is left. Called once all of them have been acknowledged."""
        self._is_done = True
        self._go_on()

    def cancel(self, error: str = "") -> None:
        """error: the receiver will not get what is left; else the change is over."""
        self._span.end(error)
        for task in (self._packing, *self._sending):
            if task is not None:
                task.cancel()

    def _go_on(self) -> None:
        if self._packing is None:
            self._packing = asyncio.get_running_loop().create_task(self._pack())

    async def _pack(self) -> None:
        received = 0
        try:
            while self._waiting or self._is_done:
                await self._room.acquire()
                try:
                    request, data = await self._next_batch()
                except Exception:
                    # A defect of ours or of a store, or no memory. No key was removed: they are packed anew.
                    log.exception("handoff.not_packed to=%s life=%d", self.to.name, self.to.life)
                    self._room.release()
                    await asyncio.sleep(RESEND_S)
                    continue
                task = asyncio.get_running_loop().create_task(self._deliver(data, request.keys))
                self._sending.add(task)
                task.add_done_callback(self._sending.discard)
                received = await self._carrier.give_way(received)
        finally:
            self._packing = None

    async def _next_batch(self) -> tuple[siblings_pb2.HandOverRequest, bytes]:
        """Remove the first keys, as many as fit into one message; returns it, also as bytes. Whatever it raises, no key
        was removed."""
        ready = self._take()
        packed = 0
        try:
            self.waits_for_store = True
            await self._carrier.release(ready)
            self.waits_for_store = False
            request = siblings_pb2.HandOverRequest(
                epoch=self._change.after.epoch,
                from_life=self._carrier.life,
                to_life=self.to.life,
                release=_release(),
                done=self._is_done,
            )
            self._carrier.pack(ready, request)
            data = request.SerializeToString()
            packed, self._is_done = len(request.keys), False
            return request, data
        finally:
            if left := ready[packed:]:
                self._waiting.update(left)
                self._first.extendleft(reversed(left))

    def _take(self) -> list[str]:
        """The next keys, which wait no more."""
        ready: list[str] = []
        waiting, first, keys = self._waiting, self._first, self._keys
        while waiting and len(ready) < BATCH_KEYS:
            key = first.popleft() if first else keys.popleft()
            if key in waiting:
                waiting.remove(key)
                ready.append(key)
        return ready

    async def _deliver(self, request: bytes, moved: Sequence[siblings_pb2.MovedKey]) -> None:
        await self._send(request)
        self._room.release()
        self._span.acknowledged(len(moved), len(request))
        self._carrier.acknowledged(self._change, self.to.life, moved)

    async def _send(self, request: bytes) -> None:
        """Send a batch until it is acknowledged. Cancelled where its receiver is dead, or the change is over."""
        while True:
            try:
                # Of each attempt: a receiver that did not tick for a while has another channel now.
                await self._carrier.channel(self.to).unary_unary("/onelane.v1.Siblings/HandOver")(request)
            except grpc.aio.AioRpcError as error:
                self._sent_again(error.code().name, error.details())
            except Exception as error:
                # Such as a channel that is closed meanwhile: without another attempt the change would wait for ever.
                self._sent_again(type(error).__name__, error)
            else:
                return
            await asyncio.sleep(RESEND_S)

    def _sent_again(self, status: str, error: object) -> None:
        self._span.repeated(status)
        self._repeats += 1
        if self._repeats.bit_count() == 1:
            # Seldom: to a machine that is dead there are hundreds a second.
            values = self.to.name, self.to.life, self._repeats, error
            log.info("handoff.sent_again to=%s life=%d times=%d error=%s", *values)


@cache
def _release() -> str:
    try:
        return version("onelane")
    except PackageNotFoundError:
        return ""
