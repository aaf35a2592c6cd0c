"""An offload named `r` and its parts, for the tests of this folder."""

from collections.abc import AsyncIterator
from random import Random

import pytest
from onelane.core.clock import SystemClock
from onelane.shard.offload.offload import Offload
from onelane.telemetry.sampling import Sampler
from onelane.telemetry.stats import Stats
from onelane.telemetry.tracer import Tracer

from tests.shard.offload.parts import Resource, Resources


@pytest.fixture
def tracer() -> Tracer:
    return Tracer(shard="s", sampler=Sampler(parent_based=True, ratio=1.0), clock=SystemClock(), rng=Random(1))


@pytest.fixture
def stats() -> Stats:
    return Stats()


@pytest.fixture
async def resources() -> AsyncIterator[Resources]:
    resources = Resources()
    yield resources
    for resource in resources.all:
        resource.gate.set()


@pytest.fixture
async def offload_and_resource(
    resources: Resources, tracer: Tracer, stats: Stats
) -> AsyncIterator[tuple[Offload[Resource], Resource]]:
    """An offload with one thread and room for three jobs."""
    offload = Offload(resources, name="r", capacity=3, tracer=tracer, stats=stats)
    await offload.wait_ready()
    yield offload, resources.all[0]
    resources.all[0].gate.set()
    await offload.aclose()
