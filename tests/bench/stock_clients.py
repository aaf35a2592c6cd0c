"""Stock clients of xDS that call the app of a cluster: how many of their calls its shards have to send on."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from onelane.core.placement import POINTS
from onelane.core.ring import hash_of

from tests.bench.cluster import APP, BenchMachines
from tests.bench.entries import is_committed, steps_of
from tests.cluster.xds.stock_clients import StockClient, client_of

KEYS = 1000
BATCH = 250
"""Calls between two looks at what was sent on, while placements change."""
AFTER_S = 1.5
"""After a change is over, calls go on for so long."""
METHOD = "/echo.v1.Echo/Unary"
JAVA, JAVA_END = "grpc-java", 2**63
"""The hashes of grpc-java are signed: its ring ends here, and it gives keys beyond the last point to that point."""


@dataclass(frozen=True, slots=True)
class Forwarded:
    """What one client has seen."""

    standing: float
    """Calls that were forwarded, of KEYS, while nothing changes."""
    after_s: float
    """From the commit of a change until the last batch of calls was over of which some were forwarded; 0: none was."""


@dataclass(frozen=True, slots=True)
class _Server:
    address: str


async def forwarded(
    client_name: str, machines: BenchMachines, folder: Path, changes: Sequence[Callable[[], object]]
) -> Forwarded:
    """changes: what changes placements, one after the other."""
    (machine, *_) = machines.apps
    server = _Server(machines.xds_address(machine))
    async with client_of(client_name, server, folder, METHOD, app=APP) as client:
        await _ask(client, KEYS)
        before = machines.forwards()
        await _ask(client, KEYS)
        standing = machines.forwards() - before - _not_its_own(client_name, machines)
        after_s = [await _forwards_after(client, machines, change) for change in changes]
    return Forwarded(standing, max(after_s))


async def _forwards_after(client: StockClient, machines: BenchMachines, change: Callable[[], object]) -> float:
    """Seconds."""
    settings, began = machines.settings_of("a"), time.perf_counter()
    changing = asyncio.create_task(steps_of(settings, change, is_committed))
    count, last, calls_until = machines.forwards(), 0.0, float("inf")
    while time.perf_counter() < calls_until:
        await _ask(client, BATCH)
        ended, now = time.perf_counter(), machines.forwards()
        if now > count:
            count, last = now, ended
        if changing.done() and calls_until == float("inf"):
            calls_until = ended + AFTER_S
    steps = await changing
    return max(0.0, last - began - steps[-1].at_s)


async def _ask(client: StockClient, count: int) -> None:
    failed = [answer for answer in await client.ask(0, count) if answer.startswith("!")]
    if failed:
        raise RuntimeError(f"{len(failed)} of {count} calls have failed, such as {failed[0]}")


def _not_its_own(client_name: str, machines: BenchMachines) -> int:
    """Keys which grpc-java sends to another shard with or without xDS, as tests/core/test_ring.py has it."""
    if client_name != JAVA:
        return 0
    points = [hash_of(f"{member.address}_{k}".encode()) for member in machines.members for k in range(POINTS)]
    last = max(point for point in points if point < JAVA_END)
    return sum(last < hash_of(key.encode()) < JAVA_END for key in map(str, range(KEYS)))
