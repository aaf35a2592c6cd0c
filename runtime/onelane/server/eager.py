"""Starts a coroutine at once, and gives it a task of its own only where it has to wait.

Most handlers never wait. A task for each of them costs a tenth of the call, and a turn of the loop besides; Python 3.12
has eager tasks for this, 3.11 does not. Here some spare tasks are parked; the first step of a coroutine runs as if one
of them ran it (same `asyncio.current_task()`, same context). If the coroutine ends in that step, the task is spare
again; if it waits, the task goes on with it. So a coroutine has one task from its first step to its last.

A task that was cancelled keeps its CancelledError, whose traceback has every frame up to the handler's; and these may
refer to the task, as `asyncio.timeout` does. Such a cycle would hold the call, with all that its client has sent, until
the garbage collector comes. So the task ends with a CancelledError of its own.
"""

import asyncio
from asyncio.tasks import _enter_task, _leave_task
from collections import deque
from collections.abc import Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from typing import Any

SPARES = 16
"""Coroutines that can begin to wait in one turn of the loop, each in a task that stands ready."""


class Eager:
    """Owned by one event loop. `close` ends the spare tasks."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._context = copy_context()
        """The context that coroutines start with. Setting a variable that is not in it costs the task."""
        self._spares: deque[_SpareTask] = deque()
        """Spare tasks; those that are parked already stand on the right."""
        self._closed = False
        self._provide()

    def start(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None] | None":
        """Run `work` until it waits; the task that goes on with it, or None where it has ended.

        Context variables that it sets end with it. Raises what its first step raises, but for a CancelledError: `work`
        has cancelled its task, and so ended.
        """
        spares = self._spares
        if not spares or not spares[-1].is_parked or asyncio.current_task(self._loop) is not None:
            self._provide()
            return self._loop.create_task(_Begun(work))
        spare = spares[-1]
        task = spare.task
        _enter_task(self._loop, task)
        try:
            waits_for = spare.context.run(work.send, None)
        except StopIteration:
            if not spare.restore():
                self._discard(spare)
            return None
        except BaseException as error:
            if not spare.restore():
                self._discard(spare)
            if isinstance(error, asyncio.CancelledError):
                return None
            raise
        finally:
            _leave_task(self._loop, task)
        spares.pop()
        spare.go_on(work, waits_for)
        if len(spares) < SPARES // 2:
            self._provide()
        return task

    def close(self) -> None:
        """End the spare tasks; coroutines that have one go on."""
        self._closed = True
        while self._spares:
            self._spares.pop().task.cancel()

    def _discard(self, spare: "_SpareTask") -> None:
        """Replace a spare task on which a coroutine has left its mark."""
        self._spares.remove(spare)
        spare.task.cancel()
        self._provide()

    def _provide(self) -> None:
        """Fill up the spare tasks; new ones are parked in the next turn of the loop."""
        while len(self._spares) < SPARES and not self._closed:
            self._spares.appendleft(_SpareTask(self._loop, self._context.copy()))


class _Begun(Coroutine[Any, Any, None]):
    """A coroutine that takes its first step even if its task is cancelled before: its `finally` blocks run."""

    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = work
        self._has_begun = False

    def send(self, value: Any) -> Any:
        self._has_begun = True
        try:
            return self._work.send(value)
        except asyncio.CancelledError as error:
            message = error.args
        raise asyncio.CancelledError(*message)

    def throw(self, *error: Any) -> Any:
        try:
            if not self._has_begun:
                self.send(None)
            return self._work.throw(*error)
        except asyncio.CancelledError as cancelled:
            message = cancelled.args
        raise asyncio.CancelledError(*message)

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, None]:
        return self._work.__await__()


class _SpareTask:
    """A spare task: it waits for a coroutine that has taken its first step."""

    def __init__(self, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        self.context = context
        self._clean: list[tuple[ContextVar[Any], Any]] = list(self.context.items())
        self._parked: asyncio.Future[None] = loop.create_future()
        self._work: Coroutine[Any, Any, None] | None = None
        self._waits_for: Any = None
        self.task: asyncio.Task[None] = loop.create_task(self._live(), context=self.context)
        self._is_waiting = False

    @property
    def is_parked(self) -> bool:
        """It has taken its first step, has no coroutine yet, and was not cancelled."""
        return self._is_waiting and not self._parked.done()

    def restore(self) -> bool:
        """Reset the context variables; False where the context has new ones, or the task has been cancelled."""
        for variable, value in self._clean:
            if self.context.get(variable) is not value:
                self.context.run(variable.set, value)
        return len(self.context) == len(self._clean) and not self._parked.done() and not self.task.cancelling()

    def go_on(self, work: Coroutine[Any, Any, None], waits_for: Any) -> None:
        """Take over a coroutine that waits for `waits_for`."""
        self._work, self._waits_for = work, waits_for
        # The task keeps the error that ends it, and that, by its traceback, this.
        del self.task
        if not self._parked.done():
            self._parked.set_result(None)

    async def _live(self) -> None:
        self._is_waiting = True
        is_cancelled = False
        try:
            await self._parked
        except asyncio.CancelledError:
            if self._work is None:
                return
            is_cancelled = True
        assert self._work is not None
        try:
            await _Rest(self._work, self._waits_for, is_cancelled=is_cancelled)
            return
        except asyncio.CancelledError as error:
            message = error.args
        raise asyncio.CancelledError(*message)


class _Rest:
    """The rest of a coroutine, as its task awaits it."""

    def __init__(self, work: Coroutine[Any, Any, None], waits_for: Any, *, is_cancelled: bool) -> None:
        self._work = work
        self._waits_for = waits_for
        self._is_cancelled = is_cancelled

    def __await__(self) -> Generator[Any, Any, None]:
        work, waits_for = self._work, self._waits_for
        try:
            # What it waits for may be anything: a task refuses what is no future.
            if self._is_cancelled and not (hasattr(waits_for, "cancel") and waits_for.cancel()):
                waits_for = work.throw(asyncio.CancelledError())
            while True:
                try:
                    value = yield waits_for
                except BaseException as error:
                    waits_for = work.throw(error)
                else:
                    waits_for = work.send(value)
        except StopIteration:
            return
