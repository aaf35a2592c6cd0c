"""The journal of one lane: what of each key is in memory, what of it is on disk, and what must wait until it is.

Promises: the unit is the turn. After it the entries of its key are compared with those that were written last, and
where they differ they join the next batch. While one batch is written the next one gathers. What rests on a change
leaves when that change is on disk, in the order in which it came. Where a batch fails, what is in it and what rests on
it fails too, and the memory of those keys is dropped: their next turn loads what is on disk.
Leaves out: calls and turns, see `lane/kept_turns`. Owned by one lane; the store is on a thread (`store_thread`).
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from functools import partial
from itertools import islice
from math import inf
from time import perf_counter, time
from typing import Protocol

from onelane.errors import Fenced, NotKept, OnelaneError
from onelane.state import store_work
from onelane.state.batch import Batch, Change, Leave
from onelane.state.journal_metrics import JournalMetrics
from onelane.state.store import KeyState, RememberedAnswer, Row, Store, StoredReminder
from onelane.state.store_thread import WorkDone

log = logging.getLogger("onelane.state")
MAX_LOOKED_AT = 1000
"""Keys that one eviction looks at."""
STORE_FAILED = "its store has failed"
Loaded = Callable[[OnelaneError | None], None]
"""Called once the state of a key is in memory, or with the reason why it is not."""


class DictsOfKeys(Protocol):
    """The durable dicts of one lane, as the journal uses them."""

    def rows_of(self, key: str, before: Mapping[str, Row]) -> dict[str, Row]:
        """The entries of a key as they are now, encoded, by the names of their dicts. key: canonical text. before: as
        they were; the rows of those that have not changed are the same objects.

        Raises:
            OnelaneError: one of them cannot be encoded.
        """

    def install(self, key: str, rows: Sequence[Row]) -> Sequence[Row]:
        """Put the loaded entries of a key in the dicts; returns them without those of dicts that this release does not
        have, which stay in the store.

        Raises:
            OnelaneError: one of them cannot be read; then no entry is there.
        """

    def forget(self, key: str) -> None:
        """Remove the entries of a key from memory."""


class StoreQueue(Protocol):
    """See `onelane.state.store_thread.StoreThread`."""

    def submit(self, work: Callable[[Store], object], done: WorkDone[object]) -> None: ...


class Resident:
    """One key whose state is in memory."""

    __slots__ = ("answers", "batch", "epoch", "is_lost", "reminders", "rows", "used_at", "written_reminders")

    def __init__(self, rows: Sequence[Row], state: KeyState, epoch: int) -> None:
        self.rows: dict[str, Row] = {row.dict_name: row for row in rows}
        """As they were loaded, or put in a batch last."""
        self.answers: dict[str, RememberedAnswer] = {answer.id: answer for answer in state.answers}
        """The oldest first."""
        self.reminders: Mapping[str, StoredReminder] = {reminder.id: reminder for reminder in state.reminders}
        """By their ids; replaced whole, in a turn of the key."""
        self.written_reminders: Mapping[str, StoredReminder] = self.reminders
        """As they were loaded, or put in a batch last."""
        self.epoch = epoch
        """By which it was loaded, and claimed. A later one may be that of its next owner already."""
        self.batch: Batch | None = None
        """The newest one with changes of this key, until it is on disk."""
        self.used_at = 0.0
        """When its last turn has ended, in Unix time."""
        self.is_lost = False
        """A batch with its changes has failed while a turn of the key ran: what is in memory must not be used."""


class Journal:
    """See the module."""

    def __init__(
        self,
        dicts: DictsOfKeys,
        store: StoreQueue,
        metrics: JournalMetrics,
        *,
        epoch: Callable[[str], int],
        in_turn: Callable[[str], bool],
        answers_s: float = 86_400.0,
        max_answers: int = 1000,
    ) -> None:
        """epoch: of the placement by which this life owns a key. in_turn: whether a turn of a key is held.
        answers_s, max_answers: for how long, and how many of each key, answers are remembered."""
        self.residents: dict[str, Resident] = {}
        """Canonical text → a key whose state is in memory. The lane looks here at the beginning of each turn."""
        self.failed_key = ""
        """The last one that could not be loaded or written."""
        self._dicts = dicts
        self._store = store
        self.metrics = metrics
        metrics.residents = lambda: len(self.residents)
        self._epoch = epoch
        self._in_turn = in_turn
        self._answers_s = answers_s
        self.max_resident: float = inf
        """Keys that stay in memory, but for those that are in use."""
        self._max_answers = max_answers
        self.on_reminders: Callable[[str, Change], None] = _ignore
        """Called with each key whose reminders a commit has changed."""
        self._gathering = Batch()
        self._writing: Batch | None = None
        self._loading: dict[str, list[Loaded]] = {}
        self._to_load: list[str] = []
        self._is_reading = False
        self._is_due = False
        """A step is scheduled for the end of the next iteration of the loop."""
        self._idle: asyncio.Event | None = None

    # Loading

    def load(self, key: str, loaded: Loaded) -> None:
        """Bring the state of a key into memory, together with all that are asked for in this iteration of the loop."""
        waiters = self._loading.get(key)
        if waiters is not None:
            waiters.append(loaded)
            return
        self._loading[key] = [loaded]
        self._to_load.append(key)
        self._step_soon()

    def _read(self) -> None:
        # Not what is about to be written: it would be read as it was before.
        ready = [key for key in self._to_load if key not in self._gathering.changes]
        if not ready:
            return
        epoch = self._epoch(ready[0])
        keys = [key for key in ready if self._epoch(key) == epoch]
        loading = set(keys)
        self._to_load = [key for key in self._to_load if key not in loading]
        self._is_reading = True
        self._store.submit(partial(store_work.load, keys, epoch, time()), partial(self._was_read, keys, epoch))

    def _was_read(self, keys: list[str], epoch: int, result: object, error: BaseException | None) -> None:
        self._is_reading = False
        states: dict[str, KeyState] = result if isinstance(result, dict) else {}
        if error is not None:
            self.failed_key = keys[0]
            self.metrics.failed("load", error)
        else:
            self.metrics.loaded(len(states))
        for key in keys:
            failure = self._install(key, epoch, states.get(key), error)
            for loaded in self._loading.pop(key):
                loaded(failure)
        self._evict()
        self._step_soon()

    def _install(
        self, key: str, epoch: int, state: KeyState | None, error: BaseException | None
    ) -> OnelaneError | None:
        if state is None:
            return _not_kept(error or Fenced([key]))
        try:
            rows = self._dicts.install(key, state.rows)
        except OnelaneError as unreadable:
            log.error("state.unreadable key=%r error=%s", key, unreadable)
            return unreadable
        except Exception as defect:
            # Of ours: the calls that wait for the key, and its move to another shard, must not wait for ever.
            log.exception("state.unreadable key=%r", key)
            return NotKept(f"the state of the key cannot be read: {type(defect).__name__}")
        self.residents[key] = Resident(rows, state, epoch)
        return None

    # Turns

    def end_turn(self, key: str, leave: Leave, answers: Sequence[RememberedAnswer] = ()) -> bool:
        """A turn of `key` that may have changed its state has ended. False where nothing of it needs to wait; else
        `leave` is called once all that it rests on is on disk, or has failed.

        answers: to be kept with the change.

        Raises:
            OnelaneError: an entry cannot be encoded; the memory of the key is dropped.
            NotKept: what it rests on has failed already.
        """
        resident = self.residents[key]
        if resident.is_lost:
            raise NotKept(STORE_FAILED)
        try:
            rows = self._dicts.rows_of(key, resident.rows)
        except BaseException:
            self.lose(key)
            raise
        if rows != resident.rows or answers or resident.reminders is not resident.written_reminders:
            self._change(key, resident, rows, answers)
        return self.rest_on(key, leave)

    def rest_on(self, key: str, leave: Leave) -> bool:
        """As `end_turn`, of what has seen the state of `key` and has not changed it."""
        resident = self.residents[key]
        if resident.is_lost:
            raise NotKept(STORE_FAILED)
        if resident.batch is None:
            return False
        resident.batch.leaving.append((key, leave))
        return True

    def is_pending(self, key: str) -> bool:
        """Whether what has seen the state of `key` must wait, or has failed already."""
        resident = self.residents.get(key)
        return resident is not None and (resident.is_lost or resident.batch is not None)

    async def kept(self, key: str) -> None:
        """Wait until all changes of earlier turns of `key` are on disk.

        Raises:
            NotKept: one of them has failed.
        """
        resident = self.residents.get(key)
        if resident is None or not (resident.is_lost or resident.batch):
            return
        if resident.batch is None:
            raise NotKept(STORE_FAILED)
        on_disk: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        resident.batch.leaving.append((key, partial(_settle, on_disk)))
        await on_disk

    def _change(self, key: str, resident: Resident, rows: dict[str, Row], answers: Sequence[RememberedAnswer]) -> None:
        change, before = self._gathering.change_of(key, resident.epoch), resident.rows
        for name, row in rows.items():
            # Those that have not changed are the same objects.
            if before.get(name) is not row:
                change.write(row)
        for name in before:
            if name not in rows:
                change.drop(name)
        for answer in answers:
            change.answers[answer.id] = resident.answers[answer.id] = answer
        if answers:
            self._forget_answers(resident, change)
        if resident.reminders is not resident.written_reminders:
            change.replace_reminders(resident.written_reminders, resident.reminders)
            resident.written_reminders = resident.reminders
        resident.rows, resident.batch = rows, self._gathering
        self._step_soon()

    def answer_of(self, key: str, name: str) -> RememberedAnswer | None:
        """The answer that is remembered under an id for `key`, which is in memory."""
        answer = self.residents[key].answers.get(name)
        return None if answer is None or answer.at < time() - self._answers_s else answer

    def _forget_answers(self, resident: Resident, change: Change) -> None:
        """Drop the answers that are too old, or too many."""
        answers, oldest = resident.answers, time() - self._answers_s
        while answers:
            name, answer = next(iter(answers.items()))
            if len(answers) <= self._max_answers and answer.at >= oldest:
                return
            del answers[name]
            change.answers.pop(name, None)
            change.dropped_answers.append(name)

    # Keys that leave this life

    def keys(self) -> tuple[str, ...]:
        """The keys whose state is in memory, is being loaded, or is being written though it has left memory."""
        writing = self._writing.changes if self._writing is not None else ()
        return tuple(dict.fromkeys((*self.residents, *self._loading, *self._gathering.changes, *writing)))

    async def release(self, keys: Sequence[str]) -> None:
        """Drop the state of keys that leave, and have had their last turns here, once all of it is on disk. Where a
        commit fails, what is on disk counts. After it nothing of these keys is written or claimed here any more."""
        for key in keys:
            with suppress(OnelaneError):
                if key in self._loading:
                    await self._load_now(key)
                await self.kept(key)
            with suppress(OnelaneError):
                await self._written(key)
            self.drop(key)

    async def _written(self, key: str) -> None:
        """Wait until no batch has changes of `key`, also where its memory was dropped since: by a turn that was undone.

        Raises:
            NotKept: a commit has failed.
        """
        while (batch := self._batch_of(key)) is not None:
            on_disk: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            batch.leaving.append((key, partial(_settle, on_disk)))
            await on_disk

    def _batch_of(self, key: str) -> Batch | None:
        """The newest batch with changes of `key` that is not on disk."""
        batches = (self._gathering, self._writing)
        return next((batch for batch in batches if batch is not None and key in batch.changes), None)

    async def _load_now(self, key: str) -> None:
        loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.load(key, partial(_settle, loaded))
        await loaded

    # Writing

    def _step_soon(self) -> None:
        """Begin to write and to load once the loop has looked at its sockets again: a burst of calls, also over several
        connections, is one batch; a lone call does not wait."""
        if not self._is_due:
            self._is_due = True
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._step, context=Context())

    def _step(self) -> None:
        self._is_due = False
        if self._writing is None and self._gathering.changes:
            self._write()
        if self._to_load and not self._is_reading:
            self._read()
        if self._idle is not None and not (self._loading or self._writing):
            self._idle.set()

    def _write(self) -> None:
        batch, self._gathering = self._gathering, Batch()
        self._writing = batch
        batch.began_at = perf_counter()
        self._store.submit(partial(store_work.commit, batch.writes(), time()), self._was_written)

    def _was_written(self, fenced: object, error: BaseException | None) -> None:
        batch, self._writing = self._writing, None
        assert batch is not None
        if error is not None:
            self.failed_key = next(iter(batch.changes))
            self.metrics.failed("commit", error)
            lost = set(batch.changes)
        else:
            lost = set(fenced) if isinstance(fenced, tuple) else set()
            if lost:
                self.metrics.failed("commit", Fenced(lost))
            self.metrics.committed(perf_counter() - batch.began_at, keys=len(batch.changes), turns=len(batch.leaving))
        for key in batch.changes.keys() - lost:
            resident = self.residents.get(key)
            if resident is not None and resident.batch is batch:
                resident.batch = None
            change = batch.changes[key]
            if change.reminders or change.dropped_reminders:
                self.on_reminders(key, change)
        # What rests on the lost keys and gathers in the next batch must not be written by it.
        failed = [*_take(batch, lost), *_take(self._gathering, lost)]
        for key in lost:
            self._gathering.changes.pop(key, None)
            self.lose(key)
        self._leave(batch.leaving, None)
        self._leave(failed, _not_kept(error or Fenced(lost)) if lost else None)
        self._step_soon()

    def _leave(self, leaving: Iterable[tuple[str, Leave]], error: OnelaneError | None) -> None:
        for _, leave in leaving:
            try:
                leave(error)
            except Exception:
                # A defect of ours: the others must not wait for ever.
                log.exception("state.answer_not_sent")

    # Memory

    def lose(self, key: str) -> None:
        """What is in memory of `key` differs from what is on disk for good: drop it, at the end of a turn of the key
        that runs."""
        resident = self.residents.get(key)
        if resident is None:
            return
        resident.is_lost, resident.batch = True, None
        if not self._in_turn(key):
            self.drop(key)

    def drop(self, key: str) -> None:
        """Remove the state of `key` from memory. Its next turn loads it."""
        if self.residents.pop(key, None) is not None:
            self._dicts.forget(key)

    def turn_over(self, key: str) -> None:
        """A turn of `key` has ended: drop its state if it is lost, else it is the one that was used last."""
        resident = self.residents.get(key)
        if resident is None:
            return
        if resident.is_lost:
            self.drop(key)
            return
        resident.used_at = time()
        if self.max_resident < inf:
            self.residents[key] = self.residents.pop(key)

    def is_used_since(self, key: str, moment: float) -> bool:
        """Whether a turn of `key`, whose state has stayed in memory, has ended since. moment: Unix time."""
        resident = self.residents.get(key)
        return resident is not None and resident.used_at >= moment

    def _evict(self) -> None:
        """Drop the state of the keys that were used least recently, where it is on disk and no turn holds it."""
        surplus = len(self.residents) - self.max_resident
        if surplus <= 0:
            return
        for key in [key for key, resident in islice(self.residents.items(), MAX_LOOKED_AT) if resident.batch is None]:
            if surplus > 0 and not self._in_turn(key):
                self.drop(key)
                surplus -= 1

    async def wait_idle(self) -> None:
        """Wait until nothing is to be written or loaded."""
        while self._loading or self._writing or self._gathering.changes:
            self._idle = asyncio.Event()
            await self._idle.wait()


def _ignore(key: str, change: Change) -> None:
    """For an app without reminders."""


def _take(batch: Batch, keys: set[str]) -> list[tuple[str, Leave]]:
    """Remove what rests on some keys from a batch."""
    taken = [pair for pair in batch.leaving if pair[0] in keys]
    if taken:
        batch.leaving = [pair for pair in batch.leaving if pair[0] not in keys]
    return taken


def _not_kept(error: BaseException) -> NotKept:
    # Its text may name files and servers: those are for our log.
    return NotKept("another shard owns the key" if isinstance(error, Fenced) else STORE_FAILED)


def _settle(on_disk: "asyncio.Future[None]", error: OnelaneError | None) -> None:
    if on_disk.done():
        return
    if error is None:
        on_disk.set_result(None)
    else:
        on_disk.set_exception(error)
