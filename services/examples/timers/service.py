"""Timers: once, as a turn of a key (`later`), and again and again (`every`)."""

from functools import partial
from typing import Any

import grpc
import onelane

from services.examples.timers.v1 import timers_pb2, timers_pb2_grpc

LATEST_S = 86_400.0
"""Timers are gone with their shard, so they are for short times."""


class Reminders(timers_pb2_grpc.RemindersServicer):
    def __init__(self, shard: onelane.Shard) -> None:
        self.shard = shard
        self.due: dict[str, list[str]] = shard.keyed("due", list)
        self.users = shard.stats.gauge("reminders.users", unit="{user}", description="Users with due reminders")
        shard.every(1.0, lambda: self.users.set(len(self.due)))

    async def Set(self, request: timers_pb2.SetRequest, context: Any) -> timers_pb2.SetReply:
        if not 0 <= request.after_s <= LATEST_S:
            details = f"after_s: expected 0 to {LATEST_S:.0f}, seen {request.after_s}"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, details)
        self.shard.later(request.user, request.after_s, partial(self.remind, request.user, request.text))
        return timers_pb2.SetReply()

    async def List(self, request: timers_pb2.ListRequest, context: Any) -> timers_pb2.ListReply:
        waiting = len(self.shard.timers(request.user))
        return timers_pb2.ListReply(due=self.due.get(request.user, []), waiting=waiting)

    def remind(self, user: str, text: str) -> None:
        """Has the turn of `user`: no call of that user runs meanwhile."""
        self.due.setdefault(user, []).append(text)
