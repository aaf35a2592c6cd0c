"""Questions to the shards of one app for the turns that they hold, and orders to end one.

Promises: an answer comes within `TURNS_ANSWER_S`, with the names of the shards that have not answered in time: a lane
that stands still is one of them.
"""

import itertools
import json
from collections.abc import Sequence
from typing import Any, Protocol

import anyio

from onelane.errors import NotThere
from onelane.supervisor.supervised_shard import SupervisedShard
from onelane.v1 import control_pb2

TURNS_ANSWER_S = 2.5


class AskedApp(Protocol):
    """The app, as its turns are asked for."""

    name: str

    @property
    def all_shards(self) -> list[SupervisedShard]: ...


class TurnQuestions:
    """See the module. Owned by the app."""

    def __init__(self, app: AskedApp) -> None:
        self._app = app
        self._numbers = itertools.count(1)
        self._pending: dict[int, anyio.Event] = {}
        self._answers: dict[int, str] = {}

    async def turns(self) -> dict[str, Any]:
        """The turns that are held, in the order of the shards."""
        answers, silent = await self._ask("")
        rows = [{"shard": shard, **turn} for shard, answer in answers.items() for turn in answer["turns"]]
        held = sum(answer["held"] for answer in answers.values())
        return {"app": self._app.name, "held": held, "turns": rows, "silent": silent}

    async def cancel(self, key: str) -> dict[str, Any]:
        """End the holder of a turn.

        Raises:
            NotThere: no shard holds the turn of this key.
        """
        answers, silent = await self._ask(key)
        for shard, answer in answers.items():
            if answer["cancelled"]:
                return {"app": self._app.name, "key": key, "shard": shard, **answer}
        unknown = f"; not answered by {', '.join(silent)}" if silent else ""
        raise NotThere(f"{self._app.name} holds no turn of the key {key!r}{unknown}")

    def answered(self, answer: control_pb2.TurnsAnswer) -> None:
        """A shard has answered."""
        if (pending := self._pending.get(answer.number)) is not None:
            self._answers[answer.number] = answer.json
            pending.set()

    async def _ask(self, cancel: str) -> tuple[dict[str, Any], list[str]]:
        """The answers by shard, and the shards that have not answered. cancel: see `AskTurns`."""
        asked = {next(self._numbers): shard for shard in self._app.all_shards if shard.is_up}
        self._pending |= {number: anyio.Event() for number in asked}
        try:
            with anyio.move_on_after(TURNS_ANSWER_S):
                await self._send(asked, cancel)
                for number in asked:
                    await self._pending[number].wait()
            return _sorted_out(asked, {number: self._answers.pop(number, "") for number in asked})
        finally:
            for number in asked:
                del self._pending[number]

    async def _send(self, asked: dict[int, SupervisedShard], cancel: str) -> None:
        async with anyio.create_task_group() as tasks:
            for number, shard in asked.items():
                message = control_pb2.AskTurns(number=number, cancel=cancel)
                tasks.start_soon(shard.send, control_pb2.ToShard(ask_turns=message))


def _sorted_out(asked: dict[int, SupervisedShard], answers: dict[int, str]) -> tuple[dict[str, Any], list[str]]:
    by_shard = {asked[number].member.name: json.loads(text) for number, text in answers.items() if text}
    silent: Sequence[str] = [asked[number].member.name for number, text in answers.items() if not text]
    return by_shard, sorted(silent)
