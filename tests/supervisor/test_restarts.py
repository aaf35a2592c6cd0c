"""Restarts and drains by which keys keep their state: the next life starts first. For the other way see scenarios/."""

import asyncio
from pathlib import Path

import pytest
from onelane.supervisor.restarts import NotRestarted
from onelane.supervisor.shard_state import ShardEvent, ShardState
from onelane.supervisor.target import scaled

from tests.bounds import BOUND_S
from tests.supervisor.fake_launcher import settle, until
from tests.supervisor.scripted_shards import ScriptedLauncher, scripted_app

ANOTHER = "another restart is under way, and shards restart one after another"


@pytest.fixture
def launcher() -> ScriptedLauncher:
    return ScriptedLauncher()


def of(launcher: ScriptedLauncher, *kinds: str) -> list[str]:
    return [line for line in launcher.trace if line.endswith(tuple(f"gets {kind}" for kind in kinds))]


async def test_a_rolling_restart_replaces_one_life_after_another_and_each_old_one_ends_before_the_next_begins(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    async with scripted_app(tmp_path, launcher, 2) as app:
        await asyncio.wait_for(app.restarts.recycle(), BOUND_S)
        assert of(launcher, "setup", "drain", "stop") == [
            "echo-0.3 gets setup",
            "echo-0.1 gets drain",
            "echo-0.1 gets stop",
            "echo-1.4 gets setup",
            "echo-1.2 gets drain",
            "echo-1.2 gets stop",
        ]
        assert [(shard.state, shard.restarts) for shard in app.shards] == [(ShardState.READY, 0)] * 2


async def test_the_next_shard_of_a_rolling_restart_waits_for_the_calls_of_the_life_that_was_replaced(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    async with scripted_app(tmp_path, launcher, 2) as app:
        launcher.ignored.add(("echo-0.1", "drain"))
        recycling = asyncio.create_task(app.restarts.recycle())
        await until(lambda: "echo-0.1 gets drain" in launcher.trace)
        await settle()
        assert of(launcher, "setup") == ["echo-0.3 gets setup"]
        launcher.shard("echo-0.1").line.deliver(drained={})
        await asyncio.wait_for(recycling, BOUND_S)


async def test_a_rolling_restart_with_broken_code_leaves_every_shard_as_it_is(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    async with scripted_app(tmp_path, launcher, 2) as app:
        launcher.failing["echo-0"] = "no such module"
        with pytest.raises(NotRestarted) as refused:
            await app.restarts.recycle()
        reason = "echo has not changed: shard echo-0 failed to start: no such module"
        assert str(refused.value) == f"echo-0 was not restarted: {reason}; echo-1 not restarted either"
        assert [shard.member.life for shard in app.shards] == [1, 2]
        assert not of(launcher, "prepare", "drain")


async def test_a_shard_whose_process_has_died_is_restarted_with_fresh_code_too(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    """Of code that crashes again and again, a restart is the way out."""
    async with scripted_app(tmp_path, launcher, 2) as app:
        launcher.ignored |= {("echo-0.3", "setup"), ("echo-0.6", "setup")}
        launcher.shard("echo-0.1").end("signal SIGSEGV")
        await until(lambda: app.shards[0].state is ShardState.RECOVERING and "echo-0.3 gets setup" in launcher.trace)
        recycling = asyncio.create_task(app.restarts.recycle())
        await settle()
        launcher.shard("echo-0.3").end("signal SIGSEGV")
        await asyncio.wait_for(recycling, BOUND_S)
        assert [(shard.member.life, shard.state) for shard in app.shards] == [
            (4, ShardState.READY),
            (5, ShardState.READY),
        ]
        launcher.shard("echo-0.4").end("signal SIGSEGV")
        await until(lambda: app.shards[0].state is ShardState.RECOVERING and "echo-0.6 gets setup" in launcher.trace)
        assert app.restarts.begin(ShardEvent.RESTART_ASKED, app.shards[0]) == ""
        await until(lambda: "echo-0.7 gets setup" in launcher.trace)
        launcher.shard("echo-0.6").end("signal SIGSEGV")
        await until(lambda: app.shards[0].member.life == 7)


async def test_scaling_during_a_rolling_restart_waits_for_the_life_under_way_and_the_restart_goes_on(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    async with scripted_app(tmp_path, launcher, 3) as app:
        launcher.ignored.add(("echo-0.1", "prepare"))
        recycling = asyncio.create_task(app.restarts.recycle())
        await settle()
        scaling = asyncio.create_task(app.changes.reach(scaled(2)))
        await settle()
        with pytest.raises(NotRestarted, match="another restart is under way"):
            await app.restarts.recycle()
        launcher.shard("echo-0.1").line.deliver(departed=2)
        await asyncio.wait_for(asyncio.gather(recycling, scaling), BOUND_S)
        assert [shard.member.name for shard in app.shards] == ["echo-0", "echo-1"]
        assert all(shard.member.life > 3 for shard in app.shards)
        assert not any(line.startswith("echo-2") and "setup" in line for line in launcher.trace)


async def test_one_shard_is_restarted_at_a_time(tmp_path: Path, launcher: ScriptedLauncher) -> None:
    async with scripted_app(tmp_path, launcher, 2) as app:
        first, second = app.shards
        assert app.restarts.begin(ShardEvent.RESTART_ASKED, first) == ""
        assert app.restarts.begin(ShardEvent.RESTART_ASKED, first) == ANOTHER
        assert app.restarts.begin(ShardEvent.RESTART_ASKED, second) == ANOTHER
        await asyncio.wait_for(first.ended.wait(), BOUND_S)
        await settle()
        assert app.restarts.begin(ShardEvent.RESTART_ASKED, second) == ""
        await asyncio.wait_for(second.ended.wait(), BOUND_S)


async def test_a_process_that_was_sent_sigterm_is_replaced(tmp_path: Path, launcher: ScriptedLauncher) -> None:
    async with scripted_app(tmp_path, launcher, 2) as app:
        old = app.shards[0]
        launcher.shard("echo-0.1").line.deliver(ask_restart={})
        await asyncio.wait_for(old.ended.wait(), BOUND_S)
        assert (app.shards[0].member.life, app.shards[0].restarts) == (3, 0)


async def test_the_keys_of_a_drained_shard_are_with_the_others_until_it_is_restarted(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    async with scripted_app(tmp_path, launcher, 2) as app:
        drained = app.shards[1]
        assert app.restarts.begin(ShardEvent.DRAIN_ASKED, drained) == ""
        assert drained.label == "draining"
        await until(lambda: drained.state is ShardState.DRAINED)
        assert [member.name for member in app.placement.members] == ["echo-0"]
        assert of(launcher, "prepare", "placement", "drain") == [
            "echo-0.1 gets prepare",
            "echo-1.2 gets prepare",
            "echo-0.1 gets placement",
            "echo-1.2 gets placement",
            "echo-1.2 gets drain",
        ]
        assert app.restarts.begin(ShardEvent.RESTART_ASKED, drained) == ""
        await asyncio.wait_for(drained.ended.wait(), BOUND_S)
        assert [(member.name, member.life) for member in app.placement.members] == [("echo-0", 1), ("echo-1", 3)]
        assert [shard.state for shard in app.shards] == [ShardState.READY] * 2


async def test_a_drained_shard_whose_process_dies_owns_its_keys_again_once_it_is_back(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    async with scripted_app(tmp_path, launcher, 2) as app:
        drained = app.shards[1]
        app.restarts.begin(ShardEvent.DRAIN_ASKED, drained)
        await until(lambda: drained.state is ShardState.DRAINED)
        launcher.shard("echo-1.2").end("signal SIGKILL")
        await until(lambda: len(app.placement.members) == 2)
        assert [(member.name, member.life) for member in app.placement.members] == [("echo-0", 1), ("echo-1", 3)]


async def test_the_last_shard_is_drained_without_another_that_could_take_its_keys(
    tmp_path: Path, launcher: ScriptedLauncher, caplog: pytest.LogCaptureFixture
) -> None:
    async with scripted_app(tmp_path, launcher, 1) as app:
        (only,) = app.shards
        app.restarts.begin(ShardEvent.DRAIN_ASKED, only)
        await until(lambda: only.state is ShardState.DRAINED)
        assert len(app.placement.members) == 1
        assert "no other shard of echo could take over the keys of echo-0" in caplog.text


async def test_where_the_last_drained_shard_is_restarted_calls_are_sent_to_it_at_once(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    async with scripted_app(tmp_path, launcher, 2) as app:
        for shard in app.shards:
            app.restarts.begin(ShardEvent.DRAIN_ASKED, shard)
            await until(lambda: shard.state is ShardState.DRAINED)  # noqa: B023 - awaited here
        last = app.shards[1]
        launcher.trace.clear()
        app.restarts.begin(ShardEvent.RESTART_ASKED, last)
        await asyncio.wait_for(last.ended.wait(), BOUND_S)
        assert of(launcher, "away", "placement")[0].endswith("gets away")
        away = [message.away for message in launcher.shard("echo-1.3").line.sent if message.HasField("away")]
        assert [list(message.drained) for message in away] == [["echo-1"], []]


async def test_a_shard_whose_lane_does_not_tick_is_restarted_without_a_change(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    """It could hand nothing over."""
    async with scripted_app(tmp_path, launcher, 2) as app:
        shard = app.shards[0]
        shard.liveness.is_responsive = False
        assert app.restarts.begin(ShardEvent.RESTART_ASKED, shard) == ""
        await until(lambda: shard.member.life != 1 and shard.state is ShardState.READY)
        assert not of(launcher, "prepare")
        assert app.shards[0] is shard
