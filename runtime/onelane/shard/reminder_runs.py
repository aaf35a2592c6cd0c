"""Runs the reminders of a shard's keys when they are due: each as a call from the shard itself, in a turn of the key.

Promises: the turn of a run holds both its method's changes and the change of the reminder itself, so both are on disk,
or neither is, and the reminder runs again. Reminders begin in the order of their due times, a bounded number at once.
Those that became due while nothing ran, or at another shard, begin once this shard has their keys; of keys that have
left none begins.
Leaves out: which are next (`state/agenda`), and when one is repeated (`state/reminder`).
"""

import asyncio
import logging
from collections.abc import Callable
from contextvars import Context
from functools import partial

import grpc.aio
from google.protobuf.message import DecodeError

from onelane.core import keys
from onelane.core.call_ids import IDEMPOTENCY_KEY
from onelane.core.context import TaskContext, current_call_var
from onelane.core.placement import Member
from onelane.errors import BadService, ForeignKey, NotKept, OnelaneError, UnreadableReminder
from onelane.lane.kept_turns import KeptTurns
from onelane.lane.lane import Lane
from onelane.lane.turn_queue import HeldTurn
from onelane.shard.reminder_metrics import ReminderMetrics
from onelane.shard.siblings import SiblingCalls
from onelane.shard.timers import Alarm, Alarms
from onelane.state.agenda import Agenda, Place
from onelane.state.batch import Change
from onelane.state.journal import StoreQueue
from onelane.state.reminder import Reminder, after_failure, after_success, read_reminder
from onelane.state.store import PAGE, DueReminder, Store
from onelane.telemetry.tracer import Span, Tracer, context_of

log = logging.getLogger("onelane.reminders")
MAX_RUNS = 32
"""Reminders of one shard that run at once."""
HORIZON_S = 60.0
"""Reminders that are due later are not read from the store yet."""
CLOCK_CHECK_S = 5.0
"""The longest time without a look at the clock, which may be set."""
PAUSE_S = 1.0
"""After a run that could not begin or be kept, or a page that could not be read."""


class ReminderRuns:
    """See the module. Owned by one lane."""

    def __init__(
        self,
        lane: Lane,
        gate: KeptTurns,
        store: StoreQueue,
        calls: SiblingCalls,
        *,
        metrics: ReminderMetrics,
        tracer: Tracer,
        alarms: Alarms,
        wall: Callable[[], float],
        max_runs: int,
    ) -> None:
        """wall: Unix time. max_runs: of one reminder that fails, until it is given up."""
        self._lane = lane
        self._gate = gate
        self._store = store
        self._calls = calls
        self._tracer = tracer
        self._alarms = alarms
        self._wall = wall
        self._max_runs = max_runs
        self._agenda = Agenda()
        self._metrics = metrics
        self._metrics.observe_waiting(lambda: len(self._agenda))
        self._tasks: set[asyncio.Task[None]] = set()
        self._alarm: Alarm | None = None
        self._is_reading = False
        self._reads = 0
        """Counts up where what is being read from the store is of no use any more."""
        self._paused_until = float("-inf")
        self._is_on = False

    def start(self) -> None:
        """Run what is due, and from now on what becomes due. The store is open."""
        self._is_on = True
        self._gate.journal.on_reminders = self._changed
        self.look_again()

    def look_again(self) -> None:
        """Read all that is due from the store anew: there may be keys that have arrived."""
        if self._is_on:
            self._begin_again()
            self._look()

    async def aclose(self) -> None:
        """Start no run any more, cancel those in progress, and wait for them."""
        self._is_on = False
        if self._alarm is not None:
            self._alarm.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # What is due

    def _look(self) -> None:
        """Start what is due, read on in the store where that is needed, and set the alarm for the next time."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if not self._is_on or self._lane.draining:
            return
        now = self._wall()
        if now >= self._paused_until:
            for due in self._agenda.take(now, MAX_RUNS - len(self._tasks)):
                self._start(due)
            if self._agenda.wants_page(now) and not self._is_reading:
                self._read_page(now)
        self._set_alarm(now)

    def _set_alarm(self, now: float) -> None:
        if len(self._tasks) >= MAX_RUNS or self._is_reading:
            # The end of a run, or of the reading, looks again.
            next_at = now + CLOCK_CHECK_S
        else:
            next_at = max(self._agenda.next_at, self._paused_until)
        wait_s = min(max(next_at - now, 0.0), CLOCK_CHECK_S)
        self._alarm = self._alarms.call_at(self._alarms.now() + wait_s, self._look)

    def _read_page(self, now: float) -> None:
        self._is_reading = True
        before, after = now + HORIZON_S, self._agenda.until
        self._store.submit(partial(_page, before, after), partial(self._was_read, self._reads, before))

    def _was_read(
        self, number: int, before: float, page: list[DueReminder] | None, error: BaseException | None
    ) -> None:
        self._is_reading = False
        if page is None:
            log.warning("reminder.not_read shard=%s error=%s", self._lane.name, error)
            self._pause()
        elif number == self._reads:
            until = page[-1].place if len(page) >= PAGE else (before, "", "")
            self._agenda.add_page([due for due in page if self._is_here(due.key)], until)
        self._look()

    def _is_here(self, key: str) -> bool:
        return self._lane.router.find_home(key) is None

    def _changed(self, key: str, change: Change) -> None:
        """A commit has written these."""
        for name in change.dropped_reminders:
            self._agenda.remove(key, name)
        for reminder in change.reminders.values():
            self._agenda.put(DueReminder(reminder.due, key, reminder))
        self._look()

    def _pause(self) -> None:
        self._paused_until = self._wall() + PAUSE_S
        self._begin_again()

    def _begin_again(self) -> None:
        self._reads += 1
        self._agenda.begin_again()

    # A run

    def _start(self, due: DueReminder) -> None:
        span = self._tracer.start("reminder", "INTERNAL", None)
        context = Context()
        context.run(current_call_var.set, TaskContext("/reminder", trace=context_of(span)))
        task = asyncio.get_running_loop().create_task(self._run(due, span), context=context)
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, due))

    def _ended(self, due: DueReminder, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._agenda.ended(due)
        self._look()

    async def _run(self, due: DueReminder, span: Span) -> None:
        status = "CANCELLED"
        try:
            status = await self._run_here(due)
        finally:
            self._tracer.end(span, error="" if status == "OK" else status)

    async def _run_here(self, due: DueReminder) -> str:
        """Run a reminder if its key is still here; returns the name of the status."""
        try:
            return await self._run_in_turns(due)
        except ForeignKey:
            # It has left, and its reminders with it.
            return "OK"
        except UnreadableReminder as error:
            self._metrics.failed("unreadable")
            log.error("reminder.unreadable shard=%s error=%s", self._lane.name, error)
            return error.status
        except OnelaneError as error:
            self._metrics.failed("not_kept")
            log.warning("reminder.not_kept shard=%s error=%s", self._lane.name, error)
            self._pause()
            return error.status

    async def _run_in_turns(self, due: DueReminder) -> str:
        """In one turn; of a run that has failed nothing is left, and the failure is noted in a second turn."""
        status = "OK"
        try:
            async with self._turn_of(due.key):
                status = await self._run_in_turn(due)
        except NotKept:
            if status == "OK":
                raise
            async with self._turn_of(due.key):
                if self._stored(due) == due.reminder:
                    reminder = read_reminder(due.key, due.reminder)
                    self._set(reminder, self._following(reminder, status))
        return status

    def _turn_of(self, key: str) -> HeldTurn:
        return HeldTurn(self._lane.queue, keys.named(key))

    async def _run_in_turn(self, due: DueReminder) -> str:
        stored = self._stored(due)
        if stored != due.reminder:
            # It was forgotten, or replaced, by a turn before this one.
            return "OK"
        reminder = read_reminder(due.key, due.reminder)
        if not reminder.failures:
            self._metrics.began(self._wall() - reminder.due_at)
        turn = self._gate.turn_of(due.key)
        assert turn is not None
        self._gate.failed_runs[turn] = reminder.failures
        try:
            status = await self._call(reminder)
        except BaseException:
            # It was cut off in the middle: undo what it has changed, it runs again as a whole.
            self._gate.journal.lose(due.key)
            raise
        finally:
            del self._gate.failed_runs[turn]
        self._metrics.ran(reminder.method, status)
        if status != "OK":
            # It will be repeated: what it has changed would be changed twice.
            self._gate.journal.lose(due.key)
        elif self._stored(due) is stored:
            # Else its own method has set it anew.
            self._set(reminder, self._following(reminder, status))
        return status

    def _stored(self, due: DueReminder) -> object:
        resident = self._gate.journal.residents.get(due.key)
        return None if resident is None else resident.reminders.get(due.reminder.id)

    def _set(self, reminder: Reminder, following: Reminder | None) -> None:
        turn = self._gate.turn_of(reminder.key)
        if turn is None:
            # What its method has changed is lost already, and this with it.
            return
        reminders = dict(self._gate.journal.residents[reminder.key].reminders)
        del reminders[reminder.id]
        if following is not None:
            reminders[following.id] = following.stored()
        self._gate.set_reminders(turn, reminders)

    async def _call(self, reminder: Reminder) -> str:
        """Call its method, in the turn of its key; returns the name of the status."""
        router = self._lane.router
        here = Member(router.shard, "", "", router.life)
        metadata = ((keys.HEADER, reminder.key), (IDEMPOTENCY_KEY, reminder.idempotency_key))
        try:
            request = self._calls.request_of(reminder.method, reminder.request)
            await self._calls.call_member(here, reminder.method, request, metadata)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        except BadService:
            # The release that has set it had this method.
            return grpc.StatusCode.UNIMPLEMENTED.name
        except DecodeError:
            return grpc.StatusCode.INVALID_ARGUMENT.name
        return "OK"

    def _following(self, reminder: Reminder, status: str) -> Reminder | None:
        """The reminder after a run; None where it is over."""
        now = self._wall()
        if status == "OK":
            following, skipped = after_success(reminder, now)
            self._metrics.skipped(skipped)
            return following
        following, is_given_up = after_failure(reminder, now, max_runs=self._max_runs)
        self._metrics.failed("given_up" if is_given_up else "status")
        log.log(
            logging.ERROR if is_given_up else logging.WARNING,
            "reminder.%s shard=%s method=%s id=%s status=%s runs=%d",
            *("given_up" if is_given_up else "failed", self._lane.name, reminder.method, reminder.id, status),
            reminder.failures + 1,
        )
        return following


def _page(before: float, after: Place, store: Store) -> list[DueReminder]:
    """On the thread."""
    return store.reminders(before=before, after=after, limit=PAGE)
