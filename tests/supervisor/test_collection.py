"""Scrapes share collections: many at once cost one, and none gets counts from before it was asked for."""

import asyncio
from typing import Any

import anyio
import pytest
from onelane.supervisor.collection import BURST, Collections


class Shards:
    """Count collections; each ends when it is let through."""

    def __init__(self, **options: Any) -> None:
        self.begun = 0
        self.pass_on = asyncio.Semaphore(0)
        self.collections = Collections(self._collect, **options)

    async def _collect(self) -> None:
        self.begun += 1
        await self.pass_on.acquire()

    def scrape(self) -> "asyncio.Task[None]":
        return asyncio.create_task(self.collections.wait_fresh())


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_scrapes_that_come_during_a_collection_share_the_next_one() -> None:
    shards = Shards()
    first = shards.scrape()
    await settle()
    later = [shards.scrape() for _ in range(1000)]
    await settle()
    shards.pass_on.release()
    await first
    await settle()
    assert shards.begun == 2
    assert not any(scrape.done() for scrape in later), "the collection under way may have passed a shard already"
    shards.pass_on.release()
    await asyncio.gather(*later)
    assert (shards.begun, shards.collections.number) == (2, 2)


async def test_where_the_scrape_that_collects_is_cancelled_another_one_collects() -> None:
    shards = Shards()
    scrapes = [shards.scrape() for _ in range(3)]
    await settle()
    scrapes[0].cancel()
    await settle()
    assert shards.begun == 2
    shards.pass_on.release()
    await asyncio.gather(*scrapes[1:])
    assert shards.begun == 2


async def test_collections_one_after_another_are_slowed_once_the_burst_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    shards, pauses = Shards(now=lambda: 1.0), []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(anyio, "sleep", sleep)
    for _ in range(BURST + 2):
        shards.pass_on.release()
        await shards.scrape()
    assert pauses == pytest.approx([0.1, 0.2])
