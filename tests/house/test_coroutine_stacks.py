"""A run that hangs is ended, and told with where it stood and what is known besides."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.coroutine_stacks import ended

SOON_S = 0.05


async def nothing() -> list[str]:
    return []


async def machine_a_stands_in_a_change() -> list[str]:
    return ["a stands in a change"]


async def hangs_deep_within() -> None:
    async for _ in never():
        pass


async def never() -> AsyncIterator[None]:
    await asyncio.Event().wait()
    yield


async def test_what_ends_in_time_is_returned_and_what_it_raises_is_raised() -> None:
    async def one() -> int:
        return 1

    async def fails() -> None:
        raise AssertionError("of its own")

    assert await ended(one(), "a run", within_s=60, circumstances=nothing) == 1
    with pytest.raises(AssertionError, match=r"^of its own$"):
        await ended(fails(), "a run", within_s=60, circumstances=nothing)


async def test_a_run_that_hangs_is_told_with_where_it_stood_and_what_is_known_besides() -> None:
    with pytest.raises(AssertionError) as raised:
        await ended(hangs_deep_within(), "a run", within_s=SOON_S, circumstances=machine_a_stands_in_a_change)
    lines = str(raised.value).splitlines()
    assert lines[0] == "a run: not ended after 0 s, when it stood at"
    assert [line.rpartition(" ")[2] for line in lines[1:3]] == ["hangs_deep_within", "never"]
    assert lines[-1] == "a stands in a change"


async def test_circumstances_that_cannot_be_told_take_nothing_from_what_can() -> None:
    async def no_etcd() -> list[str]:
        raise OSError("etcd is gone")

    with pytest.raises(AssertionError, match=r"(?s)hangs_deep_within.*not known: OSError\('etcd is gone'\)"):
        await ended(hangs_deep_within(), "a run", within_s=SOON_S, circumstances=no_etcd)


async def test_who_is_ended_from_outside_ends_the_run_with_it() -> None:
    ends, begun = [], asyncio.Event()

    async def run() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("run")

    running = asyncio.ensure_future(ended(run(), "a run", within_s=60, circumstances=nothing))
    await begun.wait()
    running.cancel()
    await asyncio.wait([running])
    assert ends == ["run"]
