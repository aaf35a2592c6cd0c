"""An app of two shards, whose lives cannot share sockets, in its supervisor: drain, crash, restart, in any order; see
`tests/scenarios`. Where they can: test_changes.py.

An output is a message that a shard gets, its kill, its change of state, or a failure of the app.
"""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from onelane.errors import OnelaneError, first_of
from onelane.supervisor.app import AppSupervisor
from onelane.supervisor.restarts import NotRestarted
from onelane.supervisor.shard_state import ShardEvent, ShardState
from onelane.supervisor.supervised_shard import SupervisedShard
from onelane.v1 import control_pb2

from tests import scenarios
from tests.supervisor.fake_launcher import FakeLauncher, app_supervisor, settle


class AppScenario:
    """An app of two fake shards. Each command returns its output."""

    def __init__(self) -> None:
        self._trace: list[str] = []
        self._launcher = FakeLauncher(self._trace)
        self._app: AppSupervisor = app_supervisor(2, self._launcher, listener="grpcio")
        self._states = [shard.state for shard in self._app.shards]
        self._tasks: list[asyncio.Task[Any]] = []

    async def run(self, line: str) -> list[str]:
        command, *arguments = line.split(" ", 2)
        act: Callable[..., None] = getattr(self, f"_{command}")
        act(*arguments)
        await settle()
        output = [*self._trace, *self._changes()]
        self._trace.clear()
        return output

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Commands

    def _start(self) -> None:
        self._begin(self._supervise())

    def _stop(self, _: str) -> None:
        self._begin(self._app.drain())

    def _recycle(self) -> None:
        self._begin(self._recycle_all())

    def _drain(self, name: str) -> None:
        self._ask(name, ShardEvent.DRAIN_ASKED, self._app.restarts.carry_out_drain)

    def _restart(self, name: str) -> None:
        self._ask(name, ShardEvent.RESTART_ASKED, self._app.restarts.carry_out_restart)

    def _ready(self, name: str) -> None:
        self._launcher.shard(name).line.deliver(ready=control_pb2.Ready(pid=1))

    def _drained(self, name: str) -> None:
        self._launcher.shard(name).line.deliver(drained=control_pb2.Drained())

    def _fail(self, name: str, reason: str) -> None:
        self._launcher.shard(name).line.deliver(failed=control_pb2.Failed(reason=reason))

    def _end(self, name: str, how: str) -> None:
        self._launcher.shard(name).end(how)

    def _sigterm(self, name: str) -> None:
        self._launcher.shard(name).line.deliver(ask_restart=control_pb2.AskRestart())

    def _restarts(self) -> None:
        self._trace += [f"{shard.member.name}: {shard.restarts}" for shard in self._app.shards]

    # How they are carried out

    async def _supervise(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                for shard in self._app.shards:
                    tasks.create_task(self._app.supervise(shard))
        except ExceptionGroup as group:
            error = first_of(group)
            assert isinstance(error, OnelaneError)
            self._trace.append(f"failed: {error}")

    async def _recycle_all(self) -> None:
        try:
            await self._app.restarts.recycle()
            self._trace.append("recycled")
        except NotRestarted as error:
            self._trace.append(f"not recycled: {error}")

    def _ask(
        self, name: str, event: ShardEvent, carry_out: Callable[[SupervisedShard], Coroutine[Any, Any, None]]
    ) -> None:
        """As `Supervisor.begin` does."""
        shard = next(shard for shard in self._app.shards if shard.member.name == name)
        if fault := self._app.restarts.objection(event, shard):
            self._trace.append(f"refused: {fault}")
            return
        shard.follow(event)
        self._begin(carry_out(shard))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work))

    def _changes(self) -> list[str]:
        before: list[ShardState] = self._states
        self._states = [shard.state for shard in self._app.shards]
        return [
            f"{shard.member.name}: {old.name} -> {shard.state.name}"
            for shard, old in zip(self._app.shards, before, strict=True)
            if shard.state is not old
        ]


@pytest.mark.parametrize("file", scenarios.files_of(__file__), ids=lambda file: file.stem)
async def test_scenario(file: Path) -> None:
    await scenarios.check(file, AppScenario)
