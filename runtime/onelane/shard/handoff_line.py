"""What one life hands over to another one in a change of placement: batches in order, each until it is acknowledged."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Protocol

import grpc.aio

from onelane.core.handoff import Handoff
from onelane.core.placement import Member
from onelane.v1 import siblings_pb2

log = logging.getLogger("onelane.handoff")
BATCH_KEYS = 256
"""Of one message, at most."""
RESEND_S = 0.05
"""Before a batch that has failed is sent again."""


class SendingLife(Protocol):
    """The life that hands over: its `HandoffCarrier`."""

    @property
    def life(self) -> int:
        """Its number."""

    async def release(self, keys: Sequence[str]) -> None:
        """The last turns of these keys are over: tell the service, and have their durable state on disk alone."""

    def batch(self, keys: dict[str, None], ready: int) -> list[siblings_pb2.MovedKey]:
        """The first keys, with their state, as many as fit in one message; they are removed. ready: of them, so many
        have been released."""

    def acknowledged(self, change: Handoff, life: int, moved: Sequence[siblings_pb2.MovedKey]) -> None:
        """The receiver has these keys, with this state."""

    def channel(self, to: Member) -> Any:
        """To the receiver."""


class HandoffLine:
    """What goes to one life, in order, one batch after another is acknowledged."""

    def __init__(self, carrier: SendingLife, change: Handoff, to: Member) -> None:
        self._carrier = carrier
        self._change = change
        self._to = to
        self._keys: dict[str, None] = {}
        self._is_done = False
        self._task: asyncio.Task[None] | None = None

    def send(self, keys: Iterable[str]) -> None:
        self._keys.update(dict.fromkeys(keys))
        self._go_on()

    def send_done(self) -> None:
        self._is_done = True
        self._go_on()

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _go_on(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._keys or self._is_done:
                ready = list(islice(self._keys, BATCH_KEYS))
                await self._carrier.release(ready)
                moved = self._carrier.batch(self._keys, len(ready))
                # It comes only once everything before it has been acknowledged.
                done, self._is_done = self._is_done, False
                request = siblings_pb2.HandOverRequest(
                    epoch=self._change.after.epoch,
                    from_life=self._carrier.life,
                    to_life=self._to.life,
                    keys=moved,
                    done=done,
                )
                await self._send(request)
                self._carrier.acknowledged(self._change, self._to.life, moved)
        finally:
            self._task = None

    async def _send(self, request: siblings_pb2.HandOverRequest) -> None:
        """Send a batch until it is acknowledged. Cancelled where its receiver is dead, or the change is over."""
        send = self._carrier.channel(self._to).unary_unary("/onelane.v1.Siblings/HandOver")
        packed = request.SerializeToString()
        while True:
            try:
                await send(packed)
            except grpc.aio.AioRpcError as error:
                log.info("handoff.sent_again to=%s life=%d error=%s", self._to.name, self._to.life, error.details())
                await asyncio.sleep(RESEND_S)
            else:
                return
