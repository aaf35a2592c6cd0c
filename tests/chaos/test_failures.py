"""Machines that join, leave, are killed, cut off and stopped under load: short runs, with fixed seeds. Never two owners
of a key, nothing lost that was acknowledged, and no call fails that is not of a machine that is harmed.

`make chaos ARGS="--machines"` has all the scenarios.
"""

import sys
from collections.abc import AsyncIterator

import pytest

from tests.chaos.cluster import MachinesUnderTest
from tests.chaos.cluster_run import machines_up, run
from tests.chaos.failures import Scenario
from tests.chaos.scenarios import BROKEN, SHORT

pytestmark = pytest.mark.slow
LEASE_S = 6
PAUSE_S = 0.1
"""Three times that of `make chaos`: ten clients still call every 10 ms, and what they look for lasts for parts of a
lease; the run with a wrong clock shows that they see it."""


@pytest.fixture(scope="module")
async def machines(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MachinesUnderTest]:
    async with machines_up(tmp_path_factory.mktemp("machines"), lease_s=LEASE_S) as machines:
        yield machines


@pytest.mark.parametrize("scenario", SHORT, ids=lambda scenario: scenario.name)
async def test_no_key_has_two_owners_and_nothing_acknowledged_is_lost(
    machines: MachinesUnderTest, scenario: Scenario
) -> None:
    outcome = await run(machines, scenario, SHORT.index(scenario), pause_s=PAUSE_S)
    sys.stdout.writelines(f"{line}\n" for line in outcome.lines())
    if not outcome.record.harms:
        assert outcome.history.failures == []


async def test_two_machines_that_serve_a_key_at_once_are_found(machines: MachinesUnderTest) -> None:
    """As one of them has a clock that no margin allows for."""
    with pytest.raises(AssertionError, match=r"TwoOwners|NotLinearizable"):
        await run(machines, BROKEN, len(SHORT), pause_s=PAUSE_S)
