"""The reminders of keys as a service sets, forgets and lists them: calls that are to come, kept with their key.

Promises: inside a turn of its key a change takes effect with that turn, and not at all where the turn is not kept;
elsewhere it is made by the owner of the key, in a turn of its own, and is on disk when the call returns. What is
refused changes nothing.
Leaves out: running them, see `reminder_runs`, which is made here for an app that keeps state.
"""

import asyncio
import math
import secrets
from datetime import datetime
from typing import Any

from onelane.core.clock import Clock
from onelane.core.context import current_call, earlier
from onelane.core.keys import RoutingKey, named
from onelane.core.placement import Member
from onelane.core.state_settings import StateSettings
from onelane.errors import BadService, DeadlinePassed, ForeignKey, Misuse, TooManyReminders
from onelane.lane.kept_turns import KeptTurns
from onelane.lane.lane import Lane
from onelane.lane.turn_queue import HeldTurn
from onelane.shard.durable_state import DurableState
from onelane.shard.reminder_metrics import ReminderMetrics
from onelane.shard.reminder_runs import ReminderRuns
from onelane.shard.siblings import SiblingCalls
from onelane.shard.timers import Alarms
from onelane.state.reminder import NONCE_BYTES, Reminder, read_reminder
from onelane.state.store import StoredReminder
from onelane.telemetry.stats import Stats
from onelane.telemetry.tracer import Tracer
from onelane.v1 import siblings_pb2

METHOD_OF_SIBLINGS = "onelane.v1.Siblings/Remind"
MIN_EVERY_S = 1.0
MAX_REMINDER_ID_BYTES, MAX_REQUEST_BYTES = 255, 64 * 1024
ASK_AGAIN_S = 0.05
"""Between two tries to reach the owner of a key that is moving."""


class Reminders:
    """See the module. Owned by one lane."""

    def __init__(
        self,
        lane: Lane,
        calls: SiblingCalls,
        *,
        stats: Stats,
        tracer: Tracer,
        clock: Clock,
        alarms: Alarms,
        settings: StateSettings,
        deadline_s: float,
    ) -> None:
        """deadline_s: of a change that is not made in the turn in which it is asked for."""
        self._lane = lane
        self._calls = calls
        self._stats = stats
        self._tracer = tracer
        self._clock = clock
        self._alarms = alarms
        self._settings = settings
        self._max_per_key = settings.max_reminders_per_key
        self._deadline_s = deadline_s
        self._runs: ReminderRuns | None = None
        """None in an app that keeps no state."""

    def keep(self, state: DurableState) -> None:
        """The app keeps state: reminders are kept with it."""
        self._runs = ReminderRuns(
            self._lane,
            state.kept,
            state.store,
            self._calls,
            metrics=ReminderMetrics(self._stats),
            tracer=self._tracer,
            alarms=self._alarms,
            wall=self._wall,
            max_runs=self._settings.max_reminder_runs,
        )

    def start(self) -> None:
        """Run reminders from now on: the shard serves calls."""
        if self._runs is not None:
            self._runs.start()

    def placed(self) -> None:
        """A placement is followed, and every key is where it belongs."""
        if self._runs is not None:
            self._runs.look_again()

    async def aclose(self) -> None:
        """Begin no run any more, and cancel those in progress."""
        if self._runs is not None:
            await self._runs.aclose()

    def _wall(self) -> float:
        """Unix time."""
        return self._clock.wall_ns() / 1e9

    async def set(
        self,
        key: RoutingKey,
        method: Any,
        request: Any,
        *,
        at: float | datetime | None,
        after_s: float | None,
        every_s: float | None,
        name: str,
    ) -> Reminder:
        """See `Shard.remind`. name: its id."""
        self._check_has_store("remind")
        text, described = self._calls.described(key, method, request)
        due_at = _due_at(at, after_s, every_s, self._wall())
        if every_s is not None and not MIN_EVERY_S <= every_s < math.inf:
            raise Misuse(f"remind: every_s is {every_s}, expected {MIN_EVERY_S:g} s or more")
        packed = request.SerializeToString()
        if len(packed) > MAX_REQUEST_BYTES:
            raise Misuse(f"remind: the request has {len(packed)} bytes, expected at most {MAX_REQUEST_BYTES}")
        nonce = secrets.token_bytes(NONCE_BYTES)
        reminder = Reminder(text, _checked_id(name or described.name), described.name, packed, due_at, every_s, nonce)
        request = siblings_pb2.RemindRequest(key=text, set=_to_proto(reminder.stored()))
        if (await self._change(request)).is_full:
            raise TooManyReminders(text, limit=self._max_per_key)
        return reminder

    async def forget(self, key: RoutingKey, name: str) -> bool:
        """See `Shard.forget_reminder`."""
        self._check_has_store("forget_reminder")
        text = self._lane.router.named_key(key, "the key of the reminder")
        reply = await self._change(siblings_pb2.RemindRequest(key=text, forget=_checked_id(name)))
        return any(reminder.id == name for reminder in reply.reminders)

    async def list(self, key: RoutingKey) -> tuple[Reminder, ...]:
        """See `Shard.reminders`."""
        self._check_has_store("reminders")
        text = self._lane.router.named_key(key, "the key of the reminders")
        reply = await self._change(siblings_pb2.RemindRequest(key=text))
        reminders = [read_reminder(text, _from_proto(reminder)) for reminder in reply.reminders]
        return tuple(sorted(reminders, key=lambda reminder: (reminder.run_at, reminder.id)))

    async def serve(self, request: siblings_pb2.RemindRequest) -> siblings_pb2.RemindReply:
        """Change the reminders of a key of this shard, for a sibling."""
        gate = self._check_has_store("remind")
        try:
            return await self._change_here(gate, request)
        except ForeignKey:
            return siblings_pb2.RemindReply(is_foreign=True)

    def _check_has_store(self, caller: str) -> KeptTurns:
        if self._lane.kept is None:
            raise BadService(
                f"{caller}: this app keeps no state; declare a dict with shard.keyed(…, durable=True),"
                " or say reminders = true in its [state]"
            )
        return self._lane.kept

    async def _change(self, request: siblings_pb2.RemindRequest) -> siblings_pb2.RemindReply:
        """Have the owner of the key make a change, in the turn in which this code runs, or in one of its own."""
        gate = self._check_has_store("remind")
        turn = gate.turn_of(request.key)
        if turn is not None:
            return self._apply(gate, request)
        if (wait := gate.before_sending()) is not None:
            await wait()
        context, now = current_call(), asyncio.get_running_loop().time()
        deadline_at = earlier(now + self._deadline_s, context.deadline_at if context is not None else None)
        try:
            async with asyncio.timeout_at(deadline_at):
                return await self._ask_owner(gate, request)
        except TimeoutError:
            raise DeadlinePassed("the deadline passed before the owner of the key had set its reminder") from None

    async def _ask_owner(self, gate: KeptTurns, request: siblings_pb2.RemindRequest) -> siblings_pb2.RemindReply:
        while True:
            reply = await self._ask(gate, self._lane.placement.owner_of(request.key), request)
            if not reply.is_foreign:
                return reply
            await asyncio.sleep(ASK_AGAIN_S)

    async def _ask(
        self, gate: KeptTurns, owner: Member, request: siblings_pb2.RemindRequest
    ) -> siblings_pb2.RemindReply:
        if self._lane.router.is_own(owner):
            return await self.serve(request)
        reply: siblings_pb2.RemindReply = await self._calls.call_member(owner, METHOD_OF_SIBLINGS, request)
        return reply

    # At the owner

    async def _change_here(self, gate: KeptTurns, request: siblings_pb2.RemindRequest) -> siblings_pb2.RemindReply:
        async with HeldTurn(self._lane.queue, named(request.key)):
            return self._apply(gate, request)

    def _apply(self, gate: KeptTurns, request: siblings_pb2.RemindRequest) -> siblings_pb2.RemindReply:
        """Make a change, in a turn of the key."""
        turn = gate.turn_of(request.key)
        assert turn is not None
        before = gate.journal.residents[request.key].reminders
        reply = siblings_pb2.RemindReply(reminders=map(_to_proto, before.values()))
        if request.HasField("set"):
            reminder = _from_proto(request.set)
            if len(before) >= self._max_per_key and reminder.id not in before:
                return siblings_pb2.RemindReply(is_full=True)
            gate.set_reminders(turn, {**before, reminder.id: reminder})
        elif request.forget in before:
            gate.set_reminders(turn, {name: other for name, other in before.items() if name != request.forget})
        return reply


def _due_at(at: float | datetime | None, after_s: float | None, every_s: float | None, now: float) -> float:
    """The first due time, in Unix time.

    Raises:
        Misuse: none or two are given, it has passed, or it has no time zone.
    """
    if at is not None and after_s is not None:
        raise Misuse("remind: at and after_s are given, expected one of them")
    if at is None:
        seconds = every_s if after_s is None else after_s
        if seconds is None:
            raise Misuse("remind: expected at, after_s or every_s")
        if not 0 <= seconds < math.inf:
            raise Misuse(f"remind: after_s is {seconds}, expected 0 or more")
        return now + seconds
    if isinstance(at, datetime):
        if at.tzinfo is None:
            raise Misuse(f"remind: at is {at}, which has no time zone")
        at = at.timestamp()
    if not now <= at < math.inf:
        raise Misuse(f"remind: at is {now - at:g} s in the past")
    return at


def _checked_id(name: str) -> str:
    if not isinstance(name, str) or not 0 < len(name.encode(errors="replace")) <= MAX_REMINDER_ID_BYTES:
        raise Misuse(f"the id of a reminder is {name!r:.300}, expected a text of 1 to {MAX_REMINDER_ID_BYTES} bytes")
    return name


def _to_proto(stored: StoredReminder) -> siblings_pb2.Reminder:
    return siblings_pb2.Reminder(id=stored.id, due=stored.due, data=stored.data)


def _from_proto(reminder: siblings_pb2.Reminder) -> StoredReminder:
    return StoredReminder(reminder.id, reminder.due, reminder.data)
