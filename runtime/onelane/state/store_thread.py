"""The one thread that uses the store of a shard, in the order in which its lane asks.

Nothing here takes a lock: both directions are a deque and a pipe (decision 0014). A side writes to the pipe of the
other only where that may sleep, so a burst of results costs one byte.
"""

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from onelane.state.store import Store

log = logging.getLogger("onelane.state")
T = TypeVar("T")
WorkDone = Callable[[T | None, BaseException | None], None]
"""Takes the result of the work, or the error that it raised."""


class StoreThread:
    """Owned by the lane; the store is the thread's."""

    def __init__(self, make_store: Callable[[], Store], name: str) -> None:
        """make_store: called on the thread."""
        self._make_store = make_store
        self._name = name
        self._loop: asyncio.AbstractEventLoop
        self._asked: deque[tuple[Callable[[Store], Any], WorkDone[Any]]] = deque()
        self._answered: deque[tuple[WorkDone[Any], Any, BaseException | None]] = deque()
        self._sleeps = False
        """The thread has no work, and waits for a byte."""
        self._is_woken = False
        """The lane has been woken, and has not taken the answers yet."""
        self._thread: threading.Thread | None = None

    async def start(self) -> None:
        """Make and open the store; raises what that raises, and has no thread then."""
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._thread_end, self._wake_thread = os.pipe()
        self._lane_end, self._wake_lane = os.pipe()
        self._loop.add_reader(self._lane_end, self._deliver)
        # A daemon: a store that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._main, name=f"store-{self._name}", daemon=True)
        self._thread.start()
        try:
            await self._opened
        except BaseException:
            await self.aclose(1.0)
            raise

    @property
    def is_running(self) -> bool:
        return self._thread is not None

    def submit(self, work: Callable[[Store], T], done: WorkDone[T]) -> None:
        """Run `work(store)` on the thread after all that was submitted before, and then `done` on the lane."""
        self._asked.append((work, done))
        if self._sleeps:
            self._sleeps = False
            os.write(self._wake_thread, b"!")

    async def run(self, work: Callable[[Store], T]) -> T:
        """`submit`, and wait for the result."""
        future: asyncio.Future[T] = self._loop.create_future()

        def done(result: T | None, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        self.submit(work, done)
        return await future

    async def aclose(self, patience_s: float) -> None:
        """Do all that was submitted, close the store, end the thread; leave it behind after `patience_s` seconds."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self.submit(lambda store: store.close(), self._closed)
        await asyncio.wait([self._ended], timeout=patience_s)
        self._loop.remove_reader(self._lane_end)
        if not self._ended.done():
            log.error("state.store_left_behind thread=%s", thread.name)
            return
        thread.join()
        for fd in (self._thread_end, self._wake_thread, self._lane_end, self._wake_lane):
            os.close(fd)

    def _closed(self, _: None, error: BaseException | None) -> None:
        if error is not None:
            log.error("state.store_not_closed shard=%s", self._name, exc_info=error)
        if not self._ended.done():
            self._ended.set_result(None)

    def _was_opened(self, _: None, error: BaseException | None) -> None:
        if self._opened.done():
            return
        if error is None:
            self._opened.set_result(None)
        else:
            self._opened.set_exception(error)

    # On the lane

    def _deliver(self) -> None:
        os.read(self._lane_end, 64)
        self._is_woken = False
        while self._answered:
            done, result, error = self._answered.popleft()
            try:
                done(result, error)
            except Exception:
                # A defect of ours: the answers behind it must not be lost.
                log.exception("state.result_not_taken shard=%s", self._name)

    # On the thread

    def _main(self) -> None:
        try:
            store = self._make_store()
            store.open()
        except BaseException as error:
            self._answer(self._was_opened, None, error)
            self._answer(self._closed, None, None)
            return
        self._answer(self._was_opened, None, None)
        is_over = False
        while not is_over:
            try:
                work, done = self._asked.popleft()
            except IndexError:
                self._sleep()
                continue
            is_over = done == self._closed
            self._work(work, done, store)
            # A reference would keep the call that waits for it alive while this thread sleeps.
            del work, done

    def _work(self, work: Callable[[Store], Any], done: WorkDone[Any], store: Store) -> None:
        try:
            result = work(store)
        except BaseException as error:
            self._answer(done, None, error)
        else:
            self._answer(done, result, None)

    def _answer(self, done: WorkDone[Any], result: Any, error: BaseException | None) -> None:
        self._answered.append((done, result, error))
        if not self._is_woken:
            self._is_woken = True
            os.write(self._wake_lane, b"!")

    def _sleep(self) -> None:
        self._sleeps = True
        if self._asked:
            # Asked for before the mark was seen: no byte may come. One too many only wakes the thread early.
            self._sleeps = False
            return
        os.read(self._thread_end, 64)
