"""A coroutine that starts at once is in every other way one that a task runs."""

import asyncio
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from onelane.server.eager import Eager

known: ContextVar[str] = ContextVar("known")


@pytest.fixture
async def eager() -> AsyncIterator[Eager]:
    known.set("before")
    eager = Eager(asyncio.get_running_loop())
    yield eager
    eager.close()
    await asyncio.sleep(0)


async def start(eager: Eager, work: Any) -> Any:
    """Start `work` from a callback, as listeners do; its task, or None."""
    loop = asyncio.get_running_loop()
    started = loop.create_future()

    def begin() -> None:
        started.set_result(eager.start(work))

    # The spare task has to stand first.
    warm = loop.create_future()
    eager.start(_end(warm))
    await warm
    await asyncio.sleep(0)
    loop.call_soon(begin)
    return await started


async def turns_until(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110 - turns of the loop are what is waited for
        await asyncio.sleep(0)


async def _end(future: "asyncio.Future[None]") -> None:
    future.set_result(None)


async def test_what_does_not_wait_ends_at_once_without_a_task(eager: Eager) -> None:
    seen = []

    async def work() -> None:
        seen.append(asyncio.current_task())

    assert await start(eager, work()) is None
    assert isinstance(seen[0], asyncio.Task)


async def test_its_task_is_the_same_from_the_first_step_to_the_last(eager: Eager) -> None:
    seen = []

    async def work() -> None:
        for _ in range(3):
            seen.append(asyncio.current_task())
            await asyncio.sleep(0)

    task = await start(eager, work())
    await task
    assert seen == [task] * 3


async def test_timeouts_and_task_groups_work_from_the_first_step(eager: Eager) -> None:
    seen: list[Any] = []

    async def work() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        with anyio.move_on_after(0.01) as scope:
            await anyio.sleep(10)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.sleep(0))
        with pytest.raises(ExceptionGroup):
            await _fail_in_a_group()
        seen.append(scope.cancelled_caught)

    await (await start(eager, work()))
    assert seen == [True]


async def _fail_in_a_group() -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_fail())
        await asyncio.Event().wait()


async def _fail() -> None:
    raise ValueError("on purpose")


@pytest.mark.parametrize("turns", [0, 1, 3])
async def test_cancelling_reaches_what_it_waits_for(eager: Eager, turns: int) -> None:
    """Also before its task has taken it over."""
    inner: list[Any] = []
    seen = []

    async def work() -> None:
        inner.append(asyncio.ensure_future(asyncio.Event().wait()))
        try:
            await inner[0]
        except asyncio.CancelledError:
            seen.append(asyncio.current_task().cancelling())  # type: ignore[union-attr]
            raise

    loop = asyncio.get_running_loop()
    await start(eager, _nothing())
    tasks: list[Any] = []

    def begin() -> None:
        tasks.append(eager.start(work()))
        if not turns:
            tasks[0].cancel()

    loop.call_soon(begin)
    await turns_until(lambda: tasks)
    for _ in range(turns):
        await asyncio.sleep(0)
    if turns:
        tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    assert inner[0].cancelled()
    assert seen == [1]


async def _nothing() -> None:
    pass


async def test_context_variables_end_with_the_coroutine(eager: Eager) -> None:
    fresh: ContextVar[str] = ContextVar("fresh")
    seen = []

    async def work(waits: bool) -> None:
        seen.append((known.get(), fresh.get("unset")))
        known.set("inside")
        fresh.set("inside")
        if waits:
            await asyncio.sleep(0)
        seen.append((known.get(), fresh.get()))

    for waits in (False, False, True, False):
        task = await start(eager, work(waits))
        if task is not None:
            await task
    assert seen == [("before", "unset"), ("inside", "inside")] * 4
    assert known.get() == "before"


async def test_one_that_cancels_itself_does_not_hurt_the_next(eager: Eager) -> None:
    async def hostile() -> None:
        asyncio.current_task().cancel()  # type: ignore[union-attr]

    done = asyncio.Event()

    async def work() -> None:
        await asyncio.sleep(0)
        done.set()

    assert await start(eager, hostile()) is None
    task = await start(eager, work())
    if task is not None:
        await task
    assert done.is_set()


async def test_what_it_raises_at_first_reaches_the_caller_and_later_the_task(eager: Eager) -> None:
    async def late() -> None:
        await asyncio.sleep(0)
        raise ValueError("late")

    task = await start(eager, late())
    with pytest.raises(ValueError, match="late"):
        await task
    caught: list[Any] = []

    def begin() -> None:
        try:
            eager.start(_fail())
        except ValueError as error:
            caught.append(error)

    await start(eager, _nothing())
    asyncio.get_running_loop().call_soon(begin)
    await turns_until(lambda: caught)
    assert str(caught[0]) == "on purpose"


async def test_a_task_serves_many_coroutines_one_after_another(eager: Eager) -> None:
    seen = set()

    async def work() -> None:
        seen.add(asyncio.current_task())
        known.set("inside")

    await start(eager, work())

    def again() -> None:
        for _ in range(100):
            assert eager.start(work()) is None

    asyncio.get_running_loop().call_soon(again)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(seen) == 1


async def test_what_is_cancelled_before_its_first_step_still_keeps_its_finally(eager: Eager) -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    # From within a task, so that it gets one of its own, which has not run yet.
    task = eager.start(work())
    assert task is not None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_a_coroutine_that_cancels_its_task_in_its_first_step_ends_and_the_next_has_a_fresh_task(
    eager: Eager,
) -> None:
    tasks: list[Any] = []

    async def cancel() -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        task.cancel()
        raise asyncio.CancelledError

    async def work() -> None:
        tasks.append(asyncio.current_task())
        await asyncio.sleep(0)

    assert await start(eager, cancel()) is None
    following = await start(eager, work())
    await following
    assert tasks[1] is following
    assert tasks[0] is not following


async def test_the_error_of_a_first_step_leaves_its_task_fit_for_the_next(eager: Eager) -> None:
    async def fail() -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        await start_and_raise(eager, fail())
    assert await start(eager, asyncio.sleep(0, None)) is not None


async def start_and_raise(eager: Eager, work: Any) -> None:
    """`start`, for what raises in its first step."""
    loop = asyncio.get_running_loop()
    failed = loop.create_future()

    def begin() -> None:
        try:
            eager.start(work)
        except BaseException as error:
            failed.set_result(error)

    await asyncio.sleep(0)
    loop.call_soon(begin)
    raise await failed
