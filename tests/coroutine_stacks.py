"""Where a task stands that does not end, and a bound for one that may not."""

import asyncio
import gc
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import AsyncGeneratorType, CoroutineType, FrameType
from typing import Any, TypeVar, cast

from tests.bounds import BOUND_S

_T = TypeVar("_T")


def awaiting(task: asyncio.Task[Any]) -> str:
    """The line of each coroutine that the task is in, outermost first: its own stack knows only the first."""
    lines, awaited = [], cast("Any", task.get_coro())
    while awaited is not None:
        if not isinstance(awaited, CoroutineType | AsyncGeneratorType):
            # What iterates over an asynchronous generator has no name for it.
            awaited = next((each for each in gc.get_referents(awaited) if isinstance(each, AsyncGeneratorType)), None)
            continue
        kind = "cr" if isinstance(awaited, CoroutineType) else "ag"
        frame: FrameType = getattr(awaited, f"{kind}_frame")
        lines.append(f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}")
        awaited = getattr(awaited, f"{kind}_await")
    return "\n".join(lines)


async def ended(
    work: Coroutine[Any, Any, _T], what: str, *, within_s: float, circumstances: Callable[[], Awaitable[Sequence[str]]]
) -> _T:
    """What the work returns. circumstances: what else is to be told where it does not end; they may hang as well.

    Raises:
        AssertionError: it has not ended in time; with where it stood.
    """
    task = asyncio.ensure_future(work)
    lines: list[str] = []
    try:
        await asyncio.wait([task], timeout=within_s)
        if not task.done():
            lines = [f"{what}: not ended after {within_s:.0f} s, when it stood at", awaiting(task)]
            try:
                lines += await asyncio.wait_for(circumstances(), BOUND_S)
            except Exception as error:
                lines.append(f"and its circumstances are not known: {error!r}")
    finally:
        if not task.done():
            task.cancel()
            # What is told must be told, also where it does not let itself be ended.
            await asyncio.wait([task], timeout=BOUND_S)
    if lines:
        raise AssertionError("\n".join(lines))
    return task.result()
