"""The calls, timers and tasks that hold keys which leave, and do not end by themselves."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Sequence

import grpc

from onelane.lane.lane import Lane
from onelane.server.call import Call
from onelane.server.call_state import RUNNING

log = logging.getLogger("onelane.handoff")
LOGGED_KEYS = 10
"""Keys that one change gives up and logs, at most."""


class LateCalls:
    """See the module. Owned by one lane."""

    def __init__(self, lane: Lane, under_way: Callable[[], Iterable[Call]], *, drain_s: float) -> None:
        """under_way: the calls that the listener has, and those of this shard to itself."""
        self._lane = lane
        self._under_way = under_way
        self._drain_s = drain_s

    def cancel(self, busy: Collection[str]) -> None:
        """Cancel what holds these keys; its calls are UNAVAILABLE once they have ended."""
        tasks = {task for turn, task in self._lane.queue.by_hand.items() if turn.key in busy}
        details = f"its key moves to another shard, and it has not ended within drain_s, {self._drain_s:g} s"
        for call in list(self._under_way()):
            task = _task_of(call)
            if call.state is RUNNING and (_key_of(call) in busy or task in tasks):
                call.end_early(grpc.StatusCode.UNAVAILABLE, details)
                if task is not None:
                    task.cancel()
                    tasks.discard(task)
        for task in tasks:
            task.cancel()

    def cut_off(self, busy: Collection[str]) -> None:
        """Tell the clients of calls that hold these keys, whatever their handlers do."""
        for call in list(self._under_way()):
            if call.state is RUNNING and _key_of(call) in busy:
                call.cut_off(grpc.StatusCode.UNAVAILABLE, "its key has moved to another shard", ())

    def log_given_up(self, keys: Sequence[str], *, after_s: float) -> None:
        """Tell the operator of turns that have caught their cancellation."""
        for key in keys[:LOGGED_KEYS]:
            log.error(
                "handoff.turn_given_up shard=%s key=%r keys=%d held_by=%s it has caught its cancellation and has not "
                "ended in %g s: its call is UNAVAILABLE, and what it changes of the key from now on is dropped",
                self._lane.name,
                key,
                len(keys),
                self._lane.queue.turns.holder(key) or "a stream",
                after_s,
            )


def _key_of(call: Call) -> str:
    """The key that a call keeps from leaving; "" without one."""
    return getattr(call, "key", "") if call.turn is None else call.turn.key


def _task_of(call: Call) -> "asyncio.Task[None] | None":
    task: asyncio.Task[None] | None = getattr(call, "task", None)
    return task
