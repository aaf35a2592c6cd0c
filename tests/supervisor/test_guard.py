"""A task of the supervisor that fails ends nothing else."""

import asyncio

import anyio
import pytest
from onelane.supervisor import guard
from onelane.supervisor.guard import guarded, guarded_for_ever


class Failing:
    """Fails so many times, and then succeeds."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    async def work(self) -> None:
        self.failures -= 1
        if self.failures >= 0:
            raise RuntimeError("a fault of ours")


async def test_a_failure_is_logged_and_ends_no_neighbour(caplog: pytest.LogCaptureFixture) -> None:
    neighbour_ran = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(guarded, Failing(1).work)
        await asyncio.sleep(0)
        neighbour_ran.set()
    assert neighbour_ran.is_set()
    assert "supervisor.task_failed task=Failing.work" in caplog.text
    assert "a fault of ours" in caplog.text


async def test_a_task_that_runs_for_ever_begins_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "AGAIN_S", 0.0)
    failing = Failing(2)
    await guarded_for_ever(failing.work)
    assert failing.failures == -1


async def test_a_cancellation_is_no_failure() -> None:
    with anyio.move_on_after(0.01) as scope:
        await guarded_for_ever(anyio.sleep_forever)
    assert scope.cancelled_caught
