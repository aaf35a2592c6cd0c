"""However a forwarded call ends, it is counted once: by its owner, and with the status that it has at home."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.mirror.app import SHAPES, Mirrored, Row, Side
from tests.running_app import Scrape

SLEEPS = {"sleeps": True}
BY_DEADLINE = Row("cut off by its deadline", ((b"grpc-timeout", b"150m"),), SLEEPS)
BY_CLIENT = Row("cut off by its client", order=SLEEPS)
WAYS = [
    Row("OK"),
    Row("aborted", order={"answers": 0, "abort": "ABORTED"}),
    Row("UNAVAILABLE of its handler", order={"answers": 0, "abort": "UNAVAILABLE"}),
    BY_DEADLINE,
    BY_CLIENT,
]


@contextmanager
def ended(side: Side, method: str, way: Row, has_begun: Callable[[], bool]) -> Iterator[None]:
    with side.call(method, way) as call:
        if way is BY_CLIENT:
            call.wait_handled()
            while not has_begun():
                call.wait_handled()
        else:
            call.wait_answered()
        yield


def counted(scrape: Scrape, method: str) -> Counter[str]:
    """Status → calls of a method that were counted with it, by all shards."""
    counts: Counter[str] = Counter()
    for line in scrape.text.splitlines():
        if line.startswith("onelane_calls_total{") and f'rpc_method="echo.v1.Echo/{method}"' in line:
            series, _, value = line.rpartition(" ")
            counts[series.partition('rpc_response_status_code="')[2].partition('"')[0]] += int(float(value))
    return counts


def after_one_call(mirrored: Mirrored, side: Side, method: str, way: Row, before: Scrape) -> Scrape:
    """The counts once one call has ended in this way. before: those of now."""
    app = mirrored.app
    in_flight = before.in_flight() + (1 if side is mirrored.home else 2)
    with ended(side, method, way, lambda: app.in_flight() >= in_flight):
        pass
    # A shard reports its counts and its calls in flight together.
    while (after := app.scrape()).in_flight() > before.in_flight():
        pass
    return after


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
async def test_a_forwarded_call_is_counted_once_and_as_at_home(mirrored: Mirrored, way: Row) -> None:
    before = mirrored.app.scrape()
    for method in SHAPES:
        at_home = await asyncio.to_thread(after_one_call, mirrored, mirrored.home, method, way, before)
        away = await asyncio.to_thread(after_one_call, mirrored, mirrored.away, method, way, at_home)
        counts = counted(at_home, method) - counted(before, method), counted(away, method) - counted(at_home, method)
        assert counts[0] == counts[1], method
        assert counts[0].total() == 1, method
        before = away
