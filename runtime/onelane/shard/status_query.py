"""A shard's questions to its supervisor: the state of all shards.

Promises: one question at a time; who asks meanwhile, or within the tick that follows, gets the same answer.
"""

import asyncio
import itertools
from collections.abc import Callable
from time import monotonic

from onelane.cluster.control import Control
from onelane.errors import Transient
from onelane.v1 import control_pb2

FRESH_S = 0.1
"""A tick: how long an answer is given again."""
QUESTION_S = 5.0


class StatusQuery:
    """Questions and answers of one shard, matched by number. Owned by its lane."""

    def __init__(self, control: Control, *, now: Callable[[], float] = monotonic) -> None:
        self._control = control
        self._now = now
        self._numbers = itertools.count(1)
        self._pending: dict[int, asyncio.Future[str]] = {}
        self._lock = asyncio.Lock()
        self._answer = ""
        """The last one."""
        self._fresh_until = 0.0

    async def ask(self) -> str:
        """The state of all shards, as JSON; a tick old at most.

        Raises:
            Transient: the supervisor has not answered for `QUESTION_S`.
        """
        async with self._lock:
            if self._now() >= self._fresh_until:
                self._answer = await self._ask_supervisor()
                self._fresh_until = self._now() + FRESH_S
            return self._answer

    async def _ask_supervisor(self) -> str:
        number = next(self._numbers)
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._pending[number] = answer
        try:
            async with asyncio.timeout(QUESTION_S):
                await self._control.send(control_pb2.ToSupervisor(ask_status=number))
                return await answer
        except TimeoutError:
            raise Transient(f"the supervisor has not answered for {QUESTION_S:.0f} s") from None
        finally:
            del self._pending[number]

    def answered(self, answer: control_pb2.StatusAnswer) -> None:
        """Give an answer of the supervisor to the question that waits for it, unless that was cancelled."""
        pending = self._pending.get(answer.number)
        if pending is not None and not pending.done():
            pending.set_result(answer.json)
