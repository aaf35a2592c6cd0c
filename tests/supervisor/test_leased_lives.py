"""Processes start under a lease, are told until when they may serve, and end with it; the processes are fakes."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from onelane.supervisor.app import AppSupervisor, ShardFailed
from onelane.supervisor.leased_lives import LeasedLives
from onelane.supervisor.shard_state import ShardState
from onelane.v1 import control_pb2

from tests.supervisor.fake_launcher import FakeLauncher, FakeShard, app_supervisor, settle


class Leased:
    """An app of one shard on a machine of a cluster."""

    def __init__(self) -> None:
        self.launcher = FakeLauncher([])
        self._tasks: list[asyncio.Task[Any]] = []
        apps: list[AppSupervisor] = []
        self.lives = LeasedLives(apps, self._start)
        self.app = app_supervisor(1, self.launcher, lives=self.lives)
        apps.append(self.app)
        self.shard = self.app.shards[0]
        self.supervising = asyncio.ensure_future(self.app.supervise(self.shard))

    def _start(self, work: Any, *arguments: Any) -> None:
        self._tasks.append(asyncio.ensure_future(work(*arguments)))

    @property
    def process(self) -> FakeShard:
        """The last one that was launched."""
        return self.launcher.launched[-1]

    def kinds(self) -> list[str | None]:
        """Of the messages to the last process."""
        return [message.WhichOneof("kind") for message in self.process.line.sent]

    def fences(self) -> list[tuple[int, float]]:
        """What the last process was told, in its setup and later."""
        sent = self.process.line.sent
        messages = [m.setup.fence if m.WhichOneof("kind") == "setup" else m.fence for m in sent]
        return [(fence.lease_id, fence.until) for fence in messages if fence.lease_id]

    async def become_ready(self) -> None:
        self.process.line.deliver(ready=control_pb2.Ready(pid=7))
        await settle()


@pytest.fixture
async def leased() -> AsyncIterator[Leased]:
    leased = Leased()
    await settle()
    yield leased
    leased.supervising.cancel()
    await asyncio.wait([leased.supervising])


async def test_a_process_waits_for_the_lease_and_its_setup_says_until_when_it_may_serve(leased: Leased) -> None:
    assert (len(leased.launcher.launched), leased.kinds()) == (1, [])
    await leased.lives.start(7, 100.0)
    await settle()
    assert (leased.kinds(), leased.fences()) == (["setup"], [(7, 100.0)])


async def test_a_renewal_is_told_to_a_process_that_is_ready_and_to_another_one_when_it_is(leased: Leased) -> None:
    await leased.lives.start(7, 100.0)
    await settle()
    leased.lives.extend(7, 101.0)
    await settle()
    assert leased.fences() == [(7, 100.0)]
    await leased.become_ready()
    assert leased.fences() == [(7, 100.0), (7, 101.0)]
    leased.lives.extend(7, 102.0)
    await settle()
    assert leased.fences()[2:] == [(7, 102.0)]


async def test_a_lost_lease_ends_its_processes_and_the_next_one_starts_under_the_next_lease(leased: Leased) -> None:
    await leased.lives.start(7, 100.0)
    await settle()
    await leased.become_ready()
    before = leased.process
    await leased.lives.end(7)
    assert before._exit.done()
    await settle()
    assert (leased.process is not before, leased.kinds()) == (True, [])
    await leased.lives.start(8, 200.0)
    await settle()
    await leased.become_ready()
    assert leased.fences() == [(8, 200.0), (8, 200.0)]
    assert (leased.shard.state, leased.shard.restarts) == (ShardState.READY, 0)


async def test_the_end_of_a_lease_waits_until_its_processes_have_ended(
    leased: Leased, monkeypatch: pytest.MonkeyPatch
) -> None:
    await leased.lives.start(7, 100.0)
    await settle()
    await leased.become_ready()
    process = leased.process
    # As a process that the system takes some time to end.
    monkeypatch.setattr(process, "kill", lambda: None)
    ending = asyncio.ensure_future(leased.lives.end(7))
    await settle()
    assert not ending.done()
    process.end("signal SIGKILL")
    await asyncio.wait_for(ending, 10)


async def test_a_lease_that_is_lost_during_the_first_start_fails_no_app(leased: Leased) -> None:
    await leased.lives.start(7, 100.0)
    await settle()
    await leased.lives.end(7)
    await leased.lives.start(8, 200.0)
    await settle()
    await leased.become_ready()
    assert (len(leased.launcher.launched), leased.shard.state) == (2, ShardState.READY)


async def test_a_renewal_of_a_lease_that_was_lost_is_told_to_nobody(leased: Leased) -> None:
    leased.lives.extend(7, 100.0)
    await leased.lives.start(8, 200.0)
    await settle()
    await leased.become_ready()
    leased.lives.extend(7, 300.0)
    await settle()
    assert {until for _, until in leased.fences()} == {200.0}


async def test_a_process_that_ends_while_it_waits_for_the_lease_is_told_as_any_failed_start(leased: Leased) -> None:
    leased.process.end("exit code 1")
    with pytest.raises(ShardFailed, match="exit code 1"):
        await asyncio.wait_for(leased.supervising, 10)


async def test_an_app_that_is_stopped_while_it_waits_for_the_lease_ends_at_once(leased: Leased) -> None:
    await asyncio.wait_for(leased.app.drain(), 4)
    await asyncio.wait_for(leased.supervising, 4)
    assert leased.kinds() in ([], ["stop"])
    assert leased.shard.state is ShardState.STOPPED
