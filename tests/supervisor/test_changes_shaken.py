"""Changes of placement beside kills and slow launches, at random: each ends, and no process runs that knows less than
the others. `test_changes` has the single cases."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from onelane.supervisor import app as app_module
from onelane.supervisor.app import AppSupervisor
from onelane.supervisor.running_change import RunningChange
from onelane.supervisor.target import Alteration, NotChanged, replaced, scaled
from onelane.v1 import control_pb2

from tests.supervisor.fake_launcher import FakeShard, settle, until
from tests.supervisor.scripted_shards import ScriptedLauncher, scripted_app

SEEDS = range(100)
STEPS = 60
MAX_SHARDS = 3


class SlowLauncher(ScriptedLauncher):
    """Some launches, starts and hand-overs take until they are let go on."""

    app: AppSupervisor

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng
        self._held: list[Callable[[], None]] = []
        self.is_slow = False

    def _follow_setup(self, shard: FakeShard, setup: control_pb2.Setup) -> None:
        self._check_knows_the_change(setup)
        self._soon(lambda: super(SlowLauncher, self)._follow_setup(shard, setup))

    def _follow_prepare(self, shard: FakeShard, prepare: control_pb2.Prepare) -> None:
        self._soon(lambda: super(SlowLauncher, self)._follow_prepare(shard, prepare))

    def _soon(self, follow: Callable[[], None]) -> None:
        if self.is_slow and self._rng.random() < 0.5:
            self._held.append(follow)
        else:
            follow()

    def _check_knows_the_change(self, setup: control_pb2.Setup) -> None:
        running = self.app.changes.running if hasattr(self, "app") else None
        if isinstance(running, RunningChange) and not setup.HasField("change"):
            assert setup.placement.epoch == running.after.epoch, f"{setup.name}.{setup.life} knows of no change"

    def go_on(self) -> None:
        """Whatever is held goes on."""
        self.may_launch.set()
        held, self._held = self._held, []
        for follow in held:
            follow()

    def running(self) -> list[FakeShard]:
        return [shard for shard in self.launched if not shard._exit.done()]


def alteration(rng: random.Random, app: AppSupervisor) -> Alteration:
    if rng.random() < 0.5:
        return scaled(rng.randint(1, MAX_SHARDS))
    return replaced(rng.randrange(len(app.shards)))


async def reach(app: AppSupervisor, alter: Alteration) -> None:
    try:
        await app.changes.reach(alter)
    except NotChanged:
        """It was not possible any more: nothing has changed."""


def names_of(app: AppSupervisor) -> list[str]:
    return sorted(f"{shard.member.name}.{shard.member.life}" for shard in app.shards)


def runs_alone(app: AppSupervisor, launcher: SlowLauncher) -> bool:
    """Every shard has a process, and no other process is there."""
    return sorted(shard.line.name for shard in launcher.running()) == names_of(app)


async def shake(app: AppSupervisor, launcher: SlowLauncher, rng: random.Random) -> None:
    """Kills and changes at random moments; returns once all changes have ended."""
    changes: list[asyncio.Task[None]] = []
    launcher.is_slow = True
    for _ in range(STEPS):
        match rng.choice(("change", "kill", "hold", "go on", "go on", "pass")):
            case "change":
                changes.append(asyncio.create_task(reach(app, alteration(rng, app))))
            case "kill" if alive := launcher.running():
                rng.choice(alive).end("signal SIGKILL")
            case "hold":
                launcher.may_launch.clear()
            case "go on":
                launcher.go_on()
        for _ in range(rng.randint(0, 12)):
            await asyncio.sleep(0)
    launcher.is_slow = False
    while not all(change.done() for change in changes):
        launcher.go_on()
        await settle()
    for change in changes:
        await change
    launcher.go_on()


@pytest.mark.parametrize("seed", SEEDS)
async def test_beside_kills_and_slow_launches_each_change_ends_and_every_process_knows_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(app_module, "backoff_s", no_pause)
    rng = random.Random(seed)
    launcher = SlowLauncher(rng)
    async with asyncio.timeout(60), scripted_app(tmp_path, launcher, 2) as app:
        launcher.app = app
        await shake(app, launcher, rng)
        await until(
            lambda: not app.beside and all(shard.is_ready for shard in app.shards) and runs_alone(app, launcher)
        )
        assert sorted(f"{member.name}.{member.life}" for member in app.placement.members) == names_of(app)
    assert launcher.running() == []


def no_pause(*_: Any, **__: Any) -> float:
    return 0.0
