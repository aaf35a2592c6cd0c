"""Short runs of chaos, with fixed seeds: what the history of each key must show, whatever is done to its app; that
each reminder runs once, and that streams miss nothing beyond what is between two of them.

`make chaos` has the long ones, with seeds of its own.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.run import Arena, Load, arena, run
from tests.chaos.schedule import Disturber, changes

pytestmark = pytest.mark.slow
LOAD = Load(clients=8, pause_s=0.005)
"""New processes have to start beside it."""


@pytest.fixture(scope="module")
def running_apps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """Whose store nobody locks: on a starved machine its own processes wait long for each other's commits."""
    with arena(tmp_path_factory.mktemp("chaos"), patience_s=60) as apps:
        yield apps


async def scales_and_a_restart(app: Disturber) -> None:
    """Two changes with nothing between them, which once hung; and new processes for both shards."""
    for shards in (4, 3, 2):
        await app.scale(shards)
    await app.restart()


async def test_no_call_fails_and_no_update_is_lost_or_doubled_in_changes(running_apps: Arena) -> None:
    outcome = await run(running_apps, "plain", 1, scales_and_a_restart, load=LOAD)
    assert (outcome.history.failures, outcome.watchers.failures, outcome.faults) == ([], [], [])


async def test_no_call_to_durable_state_fails_and_no_update_is_lost_or_doubled_in_changes(running_apps: Arena) -> None:
    outcome = await run(running_apps, "kept", 2, scales_and_a_restart, load=LOAD)
    assert (outcome.history.failures, outcome.watchers.failures, outcome.faults) == ([], [], [])


async def kills_and_a_locked_store_in_changes(app: Disturber) -> None:
    changing = asyncio.ensure_future(changes(2)(app))
    await app.kill()
    await app.lock()
    await changing


async def test_kills_and_failed_commits_lose_and_double_no_acknowledged_durable_update(tmp_path: Path) -> None:
    with arena(tmp_path) as apps:
        outcome = await run(apps, "kept", 3, kills_and_a_locked_store_in_changes, with_crashes=True, load=LOAD)
    assert (outcome.record.harm["kill"], outcome.record.harm["lock"]) == (1, 1)
