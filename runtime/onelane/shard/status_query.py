"""A shard's questions to its supervisor: the state of all shards."""

import asyncio
import itertools

from onelane.cluster.control import Control
from onelane.v1 import control_pb2


class StatusQuery:
    """Questions and answers of one shard, matched by number. Owned by its lane."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._numbers = itertools.count(1)
        self._pending: dict[int, asyncio.Future[str]] = {}

    async def ask(self) -> str:
        """The state of all shards, as JSON."""
        number = next(self._numbers)
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._pending[number] = answer
        await self._control.send(control_pb2.ToSupervisor(ask_status=number))
        try:
            return await answer
        finally:
            del self._pending[number]

    def answered(self, answer: control_pb2.StatusAnswer) -> None:
        """Give an answer of the supervisor to the coroutine that waits for it, unless that was cancelled."""
        pending = self._pending.get(answer.number)
        if pending is not None and not pending.done():
            pending.set_result(answer.json)
