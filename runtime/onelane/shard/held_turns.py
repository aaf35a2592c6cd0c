"""The turns that are held in one shard, for `onelane turns`: by which method, since when, at which line, who waits.

A turn does not know its holder, because that would cost every call: it is looked up among the calls under way. Leaves
out: a lane that does not run any more answers nothing; the watchdog tells where it stands.
"""

import asyncio
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from time import perf_counter
from types import AsyncGeneratorType, FrameType
from typing import Any

import grpc

from onelane.cluster.control import Control
from onelane.core.turns import Turn
from onelane.lane.turn_queue import TurnQueue
from onelane.server.call import Call
from onelane.shard.lane_stack import place, user_frame
from onelane.v1 import control_pb2

LISTED = 50
"""Turns that are listed, those that are held longest."""
LISTED_WAITERS = 5
END_S = 1.0
"""How long a turn that was ended is waited for."""
DEPTH = 200
"""Coroutines that wait for each other, at most, that are looked at."""
POLL_S = 0.01


class HeldTurns:
    """See the module. Owned by the lane."""

    def __init__(
        self,
        queue: TurnQueue,
        control: Control,
        *,
        under_way: Callable[[], Sequence[Call]],
        packages: frozenset[str],
        shown: Callable[[str], str],
    ) -> None:
        """under_way: the calls that have not ended. packages: top-level ones of the services. shown: a key as people
        may see it."""
        self._queue = queue
        self._control = control
        self._under_way = under_way
        self._packages = packages
        self._shown = shown

    async def answer(self, asked: control_pb2.AskTurns) -> None:
        """List the turns, or end one, and tell the supervisor."""
        answer = await self.cancel(asked.cancel) if asked.cancel else self.listed()
        message = control_pb2.TurnsAnswer(number=asked.number, json=json.dumps(answer))
        await self._control.send(control_pb2.ToSupervisor(turns=message))

    def listed(self) -> dict[str, Any]:
        """The number of turns held, and those that are held longest."""
        now = perf_counter()
        holders = self._holders()
        ages = {turn: _age_s(turn, holders.get(turn, ()), now) for turn in self._queue.turns.held.values()}
        longest = sorted(ages, key=lambda turn: -(ages[turn] or 0.0))[:LISTED]
        return {
            "held": len(ages),
            "turns": [self._described(turn, holders.get(turn, ()), ages[turn], now) for turn in longest],
        }

    async def cancel(self, key: str) -> dict[str, Any]:
        """End the holder of a turn. key: as `listed` shows it, or as it is.

        Code that suppresses its cancellation, or does not wait, cannot be ended so.
        """
        turns = self._queue.turns.held
        turn = turns.get(key) or next((turn for text, turn in turns.items() if self._shown(text) == key), None)
        if turn is None:
            return {"cancelled": False}
        for call in self._holders().get(turn, ()):
            call.cut_off(grpc.StatusCode.UNAVAILABLE, "its turn was ended by an operator: onelane turns --cancel", ())
            if not call.is_cancelled and (task := getattr(call, "task", None)) is not None:
                # Of a call that no client of a listener of ours has made.
                call.is_cancelled = True
                task.cancel()
        if (task := self._queue.by_hand.get(turn)) is not None:
            task.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                while turns.get(turn.key) is turn:  # noqa: ASYNC110 - a turn tells nobody that it ends
                    await asyncio.sleep(POLL_S)
        return {"cancelled": True, "method": turn.method, "ended": turns.get(turn.key) is not turn}

    def _holders(self) -> dict[Turn, list[Call]]:
        """The calls inside each turn, the outermost first."""
        holders: dict[Turn, list[Call]] = {}
        for call in sorted(self._under_way(), key=lambda call: call.began):
            if call.turn is not None:
                holders.setdefault(call.turn, []).append(call)
        return holders

    def _described(self, turn: Turn, calls: Sequence[Call], age_s: float | None, now: float) -> dict[str, Any]:
        task = getattr(calls[-1], "task", None) if calls else self._queue.by_hand.get(turn)
        waiting: Mapping[Any, str] = turn.waiting or {}
        waiters = [
            {"method": method, "seconds": round(now - waiter.began, 3) if isinstance(waiter, Call) else None}
            for waiter, method in list(waiting.items())[:LISTED_WAITERS]
        ]
        return {
            "key": self._shown(turn.key),
            "method": turn.method,
            "seconds": None if age_s is None else round(age_s, 3),
            "line": "" if task is None else self._line(task),
            "waiting": len(waiting),
            "waiters": waiters,
        }

    def _line(self, task: "asyncio.Task[Any]") -> str:
        frames = list(_frames(task.get_coro()))[::-1]
        frame = user_frame(frames, self._packages)
        return place(frame) if frame is not None else ""


def _age_s(turn: Turn, calls: Collection[Call], now: float) -> float | None:
    """Seconds since a turn began; None where that is not known, as of a key that is about to leave."""
    since = getattr(turn, "since", None) or next((call.began for call in calls), None)
    return None if since is None else now - since


def _frames(work: Any) -> Iterator[FrameType]:
    """The frames of a coroutine that waits, and of those that it waits for, the outermost first."""
    for _ in range(DEPTH):
        frame = _frame_of(work)
        if frame is not None:
            yield frame
        work = _awaited(work, frame)
        if work is None:
            return


def _frame_of(work: Any) -> FrameType | None:
    frames = (getattr(work, name, None) for name in ("cr_frame", "gi_frame", "ag_frame"))
    return next((frame for frame in frames if frame is not None), None)


def _awaited(work: Any, frame: FrameType | None) -> Any:
    """What a coroutine waits for, as far as that has a frame; else None, as for a future."""
    for name in ("cr_await", "gi_yieldfrom", "ag_await", "_work"):
        inner = getattr(work, name, None)
        if _frame_of(inner) is not None:
            return inner
    if frame is None:
        return None
    if frame.f_code.co_name == "__await__":
        # The rest of a coroutine that began before it had a task: server/eager.
        return frame.f_locals.get("work")
    # One step of a generator does not know it; the loop over it holds it as well.
    values = frame.f_locals.values()
    return next((value for value in values if isinstance(value, AsyncGeneratorType) and value.ag_running), None)
