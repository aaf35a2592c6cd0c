"""The one thread that uses the store of a shard."""

import asyncio
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from onelane.errors import StoreRefused
from onelane.state.memory_store import MemoryStore
from onelane.state.store import Store, StoreOptions
from onelane.state.store_thread import StoreThread

from tests.bounds import BOUND_S


class Closing(MemoryStore):
    closed = False

    def close(self) -> None:
        self.closed = True


def a_store(folder: Path) -> Closing:
    return Closing(StoreOptions(app="a", shard="a-0", life=1, folder=folder))


async def test_work_is_done_on_the_thread_in_order_and_its_results_come_back_on_the_lane(tmp_path: Path) -> None:
    thread = StoreThread(lambda: a_store(tmp_path), "a-0")
    await thread.start()
    results: list[Any] = []
    last: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def work(number: int, _: Store) -> int:
        results.append(("work", number, threading.current_thread() is threading.main_thread()))
        if number == 1:
            raise ValueError(number)
        return number

    def done(result: Any, error: BaseException | None) -> None:
        results.append(("done", result, type(error), threading.current_thread() is threading.main_thread()))
        if result == 2:
            last.set_result(None)

    for number in range(3):
        thread.submit(partial(work, number), done)
    await asyncio.wait_for(last, BOUND_S)
    assert [result for result in results if result[0] == "work"] == [("work", number, False) for number in range(3)]
    assert [result for result in results if result[0] == "done"] == [
        ("done", 0, type(None), True),
        ("done", None, ValueError, True),
        ("done", 2, type(None), True),
    ]
    await thread.aclose(5.0)


async def test_a_store_that_cannot_be_opened_says_why_and_leaves_no_thread(tmp_path: Path) -> None:
    class Foreign(Closing):
        def open(self) -> None:
            raise StoreRefused("a.sqlite", seen="the app b", expected="a")

    thread = StoreThread(lambda: Foreign(StoreOptions(app="a", shard="a-0", life=1, folder=tmp_path)), "a-0")
    with pytest.raises(StoreRefused, match="the app b"):
        await thread.start()
    assert "store-a-0" not in {other.name for other in threading.enumerate()}


async def test_all_that_was_submitted_is_done_before_the_store_is_closed(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    thread = StoreThread(lambda: store, "a-0")
    await thread.start()
    seen: list[bool] = []
    for _ in range(100):
        thread.submit(lambda _: seen.append(store.closed), lambda *_: None)
    await thread.aclose(5.0)
    assert (seen, store.closed) == ([False] * 100, True)


async def test_a_store_that_hangs_holds_up_no_end(tmp_path: Path) -> None:
    thread = StoreThread(lambda: a_store(tmp_path), "a-0")
    await thread.start()
    hangs = threading.Event()
    thread.submit(lambda _: hangs.wait(30), lambda *_: None)
    await asyncio.wait_for(thread.aclose(0.01), BOUND_S)
    hangs.set()


async def test_a_burst_and_pauses_lose_no_work(tmp_path: Path) -> None:
    """Either side may fall asleep between any two."""
    thread = StoreThread(lambda: a_store(tmp_path), "a-0")
    await thread.start()
    for burst in range(200):
        done = asyncio.Event()
        for _ in range(burst % 3):
            thread.submit(lambda _: None, lambda *_: None)
        thread.submit(lambda _: None, lambda *_, done=done: done.set())
        await asyncio.wait_for(done.wait(), BOUND_S)
    await thread.aclose(5.0)
