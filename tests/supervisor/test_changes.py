"""Changes of the placement of one app, with scripted shards and real sockets: in order, bounded, one at a time."""

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from onelane.config import App
from onelane.core import addresses
from onelane.core.validation import from_json
from onelane.supervisor import app as app_module
from onelane.supervisor import changes as changes_module
from onelane.supervisor import late_lives, own_placing, running_change
from onelane.supervisor.placing import Start
from onelane.supervisor.running_change import RunningChange
from onelane.supervisor.shard_state import ShardState
from onelane.supervisor.target import Alteration, NotChanged, drained, pinned, replaced, scaled
from onelane.v1 import control_pb2

from tests.bounds import BOUND_S
from tests.supervisor.fake_launcher import settle, until
from tests.supervisor.scripted_shards import ScriptedLauncher, scripted_app


@pytest.fixture
def launcher() -> ScriptedLauncher:
    return ScriptedLauncher()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A life has no time beyond `drain_s`."""
    for module, margin in ((own_placing, "CHANGE_MARGIN_S"), (app_module, "DRAIN_MARGIN_S")):
        monkeypatch.setattr(module, margin, 0.01)
    for module in (late_lives, running_change):
        monkeypatch.setattr(module, "BETWEEN_LOOKS_S", 0.01)
    monkeypatch.setattr(app_module, "SHARD_END_S", 0.01)


async def begun(changes: changes_module.Changes, alter: Alteration) -> asyncio.Task[None]:
    task = asyncio.get_running_loop().create_task(changes.reach(alter))
    await settle()
    return task


def is_listening(address: str) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(addresses.split(address)) == 0


async def test_of_more_shards_the_new_ones_are_ready_before_any_is_told_of_the_change(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    async with scripted_app(tmp_path, launcher, 1) as app:
        await app.changes.reach(scaled(3))
        setups = {"echo-1.2 gets setup", "echo-2.3 gets setup"}
        everyone = ["echo-0.1", "echo-1.2", "echo-2.3"]
        assert set(launcher.trace[:2]) == setups
        assert launcher.trace[2:] == [f"{name} gets {kind}" for kind in ("prepare", "placement") for name in everyone]
        assert [(member.name, member.life) for member in app.placement.members] == [
            ("echo-0", 1),
            ("echo-1", 2),
            ("echo-2", 3),
        ]
        assert (app.placement.epoch, app.settings.shards, app.beside) == (2, 3, [])
        assert all(is_listening(shard.member.address) for shard in app.shards)


async def test_of_fewer_shards_those_that_go_finish_their_calls_end_and_are_no_crash(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    async with scripted_app(tmp_path, launcher, 3) as app:
        away = app.shards[2]
        await app.changes.reach(scaled(2))
        assert launcher.trace == [
            *(f"echo-{i}.{i + 1} gets {kind}" for kind in ("prepare", "placement") for i in range(3)),
            "echo-2.3 gets drain",
            "echo-2.3 gets stop",
        ]
        await settle()
        assert (away.state, away.restarts, len(app.shards), app.beside) == (ShardState.STOPPED, 0, 2, [])
        assert not is_listening(away.member.address)
        assert sorted(os.listdir(tmp_path)) == ["echo-0.sock", "echo-1.sock"]


async def test_a_life_that_replaces_another_has_its_addresses_and_a_socket_for_siblings_of_its_own(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    async with scripted_app(tmp_path, launcher, 2) as app:
        old = app.shards[0]
        old.restarts = 4
        await app.changes.reach(replaced(0))
        new = app.shards[0]
        assert (new.member.name, new.member.address) == (old.member.name, old.member.address)
        assert Path(new.member.socket).name == "echo-0.3.sock"
        assert app.placement.members == (new.member, app.shards[1].member)
        assert (new.restarts, old.state) == (4, ShardState.STOPPED)
        assert launcher.trace == [
            "echo-0.3 gets setup",
            "echo-0.1 gets prepare",
            "echo-1.2 gets prepare",
            "echo-0.3 gets prepare",
            "echo-0.3 gets placement",
            "echo-1.2 gets placement",
            "echo-0.1 gets placement",
            "echo-0.1 gets drain",
            "echo-0.1 gets stop",
        ]
        assert is_listening(new.member.address)


async def test_where_a_new_life_does_not_start_nothing_has_changed(tmp_path: Path, launcher: ScriptedLauncher) -> None:
    async with scripted_app(tmp_path, launcher, 1) as app:
        before = app.placement
        launcher.failing["echo-2"] = "no such module"
        with pytest.raises(NotChanged, match=r"^echo has not changed: shard echo-2 failed to start: no such module$"):
            await app.changes.reach(scaled(3))
        await settle()
        assert (app.placement, len(app.shards), app.beside, app.changes.target.shards) == (before, 1, [], 1)
        assert not any("prepare" in line or "echo-0" in line for line in launcher.trace)
        launcher.failing.clear()
        await app.changes.reach(scaled(3))
        assert len(app.shards) == 3


async def test_a_port_that_is_taken_is_named_and_nothing_has_changed(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    async with scripted_app(tmp_path, launcher, 1) as app:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            assert app.changes.sockets is not None
            app.changes.sockets._own_port_of = lambda index: port
            with pytest.raises(NotChanged, match=rf"echo-1 cannot be started: 127\.0\.0\.1:{port} is taken by"):
                await app.changes.reach(scaled(2))
            assert (len(app.shards), app.beside) == (1, [])


async def test_an_app_whose_lives_cannot_share_sockets_is_refused_by_name(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    async with scripted_app(tmp_path, launcher, 1, listener="grpcio") as app:
        with pytest.raises(NotChanged, match="echo cannot change its placement: its listener 'grpcio' opens its sock"):
            await app.changes.reach(scaled(2))
    async with scripted_app(tmp_path, launcher, 1, membership="static") as app:
        with pytest.raises(NotChanged, match="echo cannot change its placement: its membership is static"):
            await app.changes.reach(scaled(2))


@pytest.mark.parametrize("doomed", ["echo-0.1", "echo-1.2", "echo-2.3"])
@pytest.mark.parametrize("step", ["prepare", "placement"])
async def test_a_life_that_dies_in_a_change_is_followed_and_the_change_ends(
    tmp_path: Path, launcher: ScriptedLauncher, doomed: str, step: str
) -> None:
    """From two shards to three with another first life; each of the lives dies at each step."""
    async with scripted_app(tmp_path, launcher, 2) as app:
        # The one that is replaced ends with the change, as it would anyway.
        launcher.deadly.add((doomed, step))
        launcher.ignored.add(("echo-1.2" if doomed != "echo-1.2" else "echo-0.1", "prepare"))
        changing = asyncio.create_task(app.changes.reach(scaled(3)))
        if step == "prepare":
            await until(lambda: f"{doomed} gets {step}" in launcher.trace)
        await settle()
        waiting = launcher.shard("echo-1.2" if doomed != "echo-1.2" else "echo-0.1")
        assert not changing.done()
        if step == "prepare":
            kinds = [str(message.WhichOneof("kind")) for message in waiting.line.sent]
            assert kinds == ["setup", "prepare", "gone", "reborn"]
            life = int(doomed.rpartition(".")[2])
            assert (waiting.line.sent[2].gone.life, waiting.line.sent[3].reborn.life) == (life, 4)
            setup = launcher.shard(f"{doomed.partition('.')[0]}.4").line.sent[0].setup
            assert (setup.life, list(setup.change.gone)) == (4, [life])
            assert 4 in {member.life for member in setup.change.after.members}
        waiting.line.deliver(departed=2)
        waiting.line.deliver(arrived=2)
        await asyncio.wait_for(changing, BOUND_S)
        await settle()
        assert [shard.state for shard in app.shards] == [ShardState.READY] * 3
        assert {member.life for member in app.placement.members} == {shard.member.life for shard in app.shards}
        assert sum(shard.restarts for shard in app.shards) == 1


async def test_a_life_that_is_replaced_and_dies_in_the_change_is_not_started_again(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    async with scripted_app(tmp_path, launcher, 2) as app:
        launcher.deadly.add(("echo-0.1", "prepare"))
        await asyncio.wait_for(app.changes.reach(replaced(0)), BOUND_S)
        assert len(launcher.launched) == 3
        assert (app.shards[0].member.life, app.shards[0].restarts) == (3, 0)
        assert (app.beside, sorted(os.listdir(tmp_path))) == ([], ["echo-0.3.sock", "echo-1.sock"])


async def test_a_life_that_is_replaced_has_no_next_one_in_the_change_where_that_was_being_launched_before(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    """It would know of no change, and serve keys that others own by now: what they told it would be lost."""
    async with scripted_app(tmp_path, launcher, 2) as app:
        launcher.ignored |= {("echo-1.3", "setup"), ("echo-0.1", "prepare")}
        changing = await begun(app.changes, replaced(1))
        launcher.may_launch.clear()
        away = app.shards[1]
        launcher.shard("echo-1.2").end("signal SIGKILL")
        await until(lambda: away.state is ShardState.RECOVERING)
        launcher.shard("echo-1.3").line.deliver(ready=control_pb2.Ready(pid=3))
        await until(lambda: "echo-0.1 gets prepare" in launcher.trace)
        launcher.may_launch.set()
        await until(lambda: away.state is ShardState.STOPPED)
        assert [line for line in launcher.trace if "setup" in line] == ["echo-1.3 gets setup"]
        launcher.shard("echo-0.1").line.deliver(departed=2)
        launcher.shard("echo-0.1").line.deliver(arrived=2)
        await asyncio.wait_for(changing, BOUND_S)


async def test_a_life_that_starts_as_the_change_ends_begins_with_the_placement_that_follows(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    """One shard reads nothing as the others are told the last of the change."""
    async with scripted_app(tmp_path, launcher, 2) as app:
        launcher.ignored.add(("echo-2.3", "prepare"))
        changing = await begun(app.changes, scaled(3))
        await until(lambda: "echo-2.3 gets prepare" in launcher.trace)
        launcher.may_launch.clear()
        launcher.shard("echo-0.1").line.stands_still = True
        launcher.shard("echo-1.2").end("signal SIGKILL")
        await until(lambda: app.shards[1].state is ShardState.RECOVERING)
        launcher.shard("echo-2.3").line.deliver(departed=2)
        launcher.shard("echo-2.3").line.deliver(arrived=2)
        await settle()
        launcher.may_launch.set()
        await until(lambda: "echo-1.4 gets setup" in launcher.trace)
        assert not changing.done()
        setup = launcher.shard("echo-1.4").line.sent[0].setup
        lives = {"echo-0": 1, "echo-1": 4, "echo-2": 3}
        assert setup.placement.epoch == 2
        assert {member.name: member.life for member in setup.placement.members} == lives
        launcher.shard("echo-0.1").line.reads_on()
        await asyncio.wait_for(changing, BOUND_S)
        assert {member.name: member.life for member in app.placement.members} == lives


async def test_a_shard_that_is_between_two_lives_is_left_out_without_another(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    async with scripted_app(tmp_path, launcher, 2) as app:
        away = app.shards[1]
        async with asyncio.timeout(BOUND_S):
            while away.state is not ShardState.RECOVERING or away.is_alive:
                launcher.launched[-1].end("exit code 1")
                await settle()
        lives = len(launcher.launched)
        await asyncio.wait_for(app.changes.reach(scaled(1)), BOUND_S)
        assert (away.state, len(launcher.launched)) == (ShardState.STOPPED, lives)


@pytest.mark.parametrize(("alter", "replaces"), [(scaled(1), False), (replaced(1), True)], ids=["scaled", "replaced"])
async def test_a_shard_that_is_left_out_while_its_next_process_is_launched_has_none(
    tmp_path: Path, launcher: ScriptedLauncher, alter: Alteration, replaces: bool
) -> None:
    """Else a process would run on that owns nothing, and the change would wait for its end."""
    async with scripted_app(tmp_path, launcher, 2) as app:
        away = app.shards[1]
        launcher.ignored.add(("echo-1.3", "setup"))
        changing = await begun(app.changes, alter) if replaces else None
        launcher.may_launch.clear()
        launcher.shard("echo-1.2").end("signal SIGKILL")
        await until(lambda: away.state is ShardState.RECOVERING)
        await settle()
        if changing is None:
            changing = await begun(app.changes, alter)
        else:
            launcher.shard("echo-1.3").line.deliver(ready=control_pb2.Ready(pid=3))
        await until(lambda: away.state is ShardState.LEAVING)
        launcher.may_launch.set()
        await asyncio.wait_for(changing, BOUND_S)
        assert (away.state, app.beside) == (ShardState.STOPPED, [])
        assert [shard.line.name for shard in launcher.launched if not shard._exit.done()] == [
            f"{shard.member.name}.{shard.member.life}" for shard in app.shards
        ]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("hung", ["echo-0.1", "echo-1.2", "echo-2.3"])
@pytest.mark.parametrize("step", ["prepare", "drain", "stop"])
async def test_a_life_that_hangs_is_killed_in_time_and_the_change_ends(
    tmp_path: Path, launcher: ScriptedLauncher, hung: str, step: str
) -> None:
    async with scripted_app(tmp_path, launcher, 2, drain_s=0.05, stop_s=0.05) as app:
        launcher.ignored.add((hung, step))
        await asyncio.wait_for(app.changes.reach(scaled(3)), BOUND_S)
        await asyncio.wait_for(app.changes.reach(scaled(1)), BOUND_S)
        assert (len(app.shards), app.beside) == (1, [])
        if step == "prepare" or (step == "stop" and hung != "echo-0.1"):
            assert f"{hung} is killed" in launcher.trace


def look(app: app_module.AppSupervisor) -> None:
    """Look for lives that hang, as the change under way does from time to time."""
    running = app.placing.running
    assert isinstance(running, RunningChange)
    running._end_late_lives()


LOOKS = 40
"""More than a life has that hangs."""
WAITS = {
    "hands over key after key": lambda number: control_pb2.HandoffProgress(epoch=2, waits_for=[1], departed=number),
    "waits for the other": lambda _: control_pb2.HandoffProgress(epoch=2, waits_for=[2]),
    "waits for its store": lambda _: control_pb2.HandoffProgress(epoch=2, waits_for_store=True),
}


@pytest.mark.parametrize("says", WAITS.values(), ids=WAITS)
async def test_a_life_that_gets_on_or_waits_for_others_or_for_its_store_has_time(
    tmp_path: Path, launcher: ScriptedLauncher, says: Callable[[int], control_pb2.HandoffProgress]
) -> None:
    """It would be killed with the state of those that have not moved yet, and of those that stay."""
    async with scripted_app(tmp_path, launcher, 1, drain_s=1.0) as app:
        launcher.ignored.add(("echo-0.1", "prepare"))
        changing = await begun(app.changes, scaled(2))
        await until(lambda: app.changes.running is not None)
        line = launcher.shard("echo-0.1").line
        for number in range(LOOKS):
            line.deliver(progress=says(number))
            await settle()
            look(app)
        line.deliver(departed=2)
        line.deliver(arrived=2)
        await asyncio.wait_for(changing, BOUND_S)
        assert "echo-0.1 is killed" not in launcher.trace


async def test_of_two_lives_the_one_is_killed_that_says_that_its_own_step_is_missing(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    async with scripted_app(tmp_path, launcher, 2, drain_s=1.0) as app:
        launcher.ignored |= {("echo-0.1", "prepare"), ("echo-1.2", "prepare")}
        changing = await begun(app.changes, scaled(1))
        await until(lambda: app.changes.running is not None)
        while "echo-1.2 is killed" not in launcher.trace:
            for name in ("echo-0.1", "echo-1.2"):
                launcher.shard(name).line.deliver(progress=control_pb2.HandoffProgress(epoch=2, waits_for=[2]))
            await settle()
            look(app)
        for step in ("departed", "arrived"):
            launcher.shard("echo-0.1").line.deliver(**{step: 2})
        await asyncio.wait_for(changing, BOUND_S)
        assert "echo-0.1 is killed" not in launcher.trace


@pytest.mark.usefixtures("impatient")
async def test_a_new_life_that_hangs_in_its_start_is_killed_in_time_and_nothing_has_changed(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    async with scripted_app(tmp_path, launcher, 1, start_s=0.05) as app:
        launcher.ignored.add(("echo-1.2", "setup"))
        with pytest.raises(NotChanged, match=r"echo-1 failed to start: it was not ready within 0\.1 s, so it was kil"):
            await asyncio.wait_for(app.changes.reach(scaled(2)), BOUND_S)
        assert (len(app.shards), app.placement.epoch) == (1, 1)


async def test_a_change_waits_for_the_one_under_way_and_those_that_wait_become_one(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    async with scripted_app(tmp_path, launcher, 1) as app:
        launcher.ignored.add(("echo-0.1", "prepare"))
        tasks = [await begun(app.changes, scaled(2))]
        launcher.ignored.clear()
        tasks += [await begun(app.changes, alter) for alter in (scaled(5), pinned("apples", 4), scaled(3), drained(0))]
        assert app.changes.running is not None
        assert launcher.trace.count("echo-0.1 gets prepare") == 1
        launcher.shard("echo-0.1").line.deliver(departed=2)
        launcher.shard("echo-0.1").line.deliver(arrived=2)
        await asyncio.wait_for(asyncio.gather(*tasks), BOUND_S)
        assert launcher.trace.count("echo-0.1 gets prepare") == 2
        assert [member.name for member in app.placement.members] == ["echo-1", "echo-2"]
        assert (app.placement.epoch, app.changes.target.pins) == (3, {"apples": 4})


async def test_one_request_that_is_not_possible_any_more_is_refused_alone(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    async with scripted_app(tmp_path, launcher, 1) as app:
        launcher.ignored.add(("echo-1.2", "setup"))
        scaling = await begun(app.changes, scaled(2))
        pinning, other = await begun(app.changes, pinned("k", 1)), await begun(app.changes, pinned("k", 0))
        launcher.shard("echo-1.2").end("exit code 1")
        outcomes = await asyncio.wait_for(asyncio.gather(scaling, pinning, other, return_exceptions=True), BOUND_S)
        assert [type(outcome) for outcome in outcomes] == [NotChanged, NotChanged, type(None)]
        assert str(outcomes[1]) == "echo has no shard 1: it has the shards 0 to 0"
        assert app.placement.pins == {"k": "echo-0"}


async def test_pins_are_kept_over_changes(tmp_path: Path, launcher: ScriptedLauncher) -> None:
    async with scripted_app(tmp_path, launcher, 2) as app:
        await app.changes.reach(pinned("apples", 1))
        await app.changes.reach(replaced(1))
        assert app.placement.owner_of("apples") == app.shards[1].member
        await app.changes.reach(scaled(1))
        assert app.placement.owner_of("apples") == app.shards[0].member
        await app.changes.reach(scaled(2))
        assert app.placement.owner_of("apples") == app.shards[1].member


async def test_a_shard_starts_again_also_where_a_pin_waits_for_another_that_the_app_has_no_more(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    async with scripted_app(tmp_path, launcher, 2) as app:
        await app.changes.reach(pinned("apples", 1))
        await app.changes.reach(scaled(1))
        assert from_json(App, app.setup_of(app.shards[0], Start(app.placement)).settings).shard_count == 1
        await app.changes.reach(scaled(2))
        assert from_json(App, app.setup_of(app.shards[0], Start(app.placement)).settings).pins == {"apples": 1}


async def test_a_change_that_changes_no_owner_tells_nobody(tmp_path: Path, launcher: ScriptedLauncher) -> None:
    async with scripted_app(tmp_path, launcher, 2) as app:
        await app.changes.reach(scaled(2))
        assert (launcher.trace, app.placement.epoch) == ([], 1)


async def test_an_app_that_stops_gives_up_what_waits_and_ends_every_life(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    async with scripted_app(tmp_path, launcher, 2) as app:
        launcher.ignored.add(("echo-2.3", "setup"))
        tasks = [await begun(app.changes, alter) for alter in (scaled(3), scaled(4))]
        await asyncio.wait_for(app.drain(), BOUND_S)
        outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), BOUND_S)
        assert [str(outcome) for outcome in outcomes] == ["echo stops", "echo stops"]
        await settle()
        assert [shard.state for shard in app.shards] == [ShardState.STOPPED] * 2
        with pytest.raises(NotChanged, match="it stops"):
            await app.changes.reach(scaled(3))
    assert all(shard._exit.done() for shard in launcher.launched)


async def test_an_app_that_stops_while_a_process_is_launched_ends_it(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    async with scripted_app(tmp_path, launcher, 2) as app:
        launcher.may_launch.clear()
        launcher.shard("echo-1.2").end("signal SIGKILL")
        await until(lambda: app.shards[1].state is ShardState.RECOVERING)
        await settle()
        await asyncio.wait_for(app.drain(), BOUND_S)
        launcher.may_launch.set()
        await until(lambda: len(launcher.launched) == 3)
        await settle()
        assert [shard.state for shard in app.shards] == [ShardState.STOPPED] * 2
    assert all(shard._exit.done() for shard in launcher.launched)


async def test_an_app_that_stops_in_the_middle_of_a_change_ends_every_life(
    tmp_path: Path, launcher: ScriptedLauncher, caplog: pytest.LogCaptureFixture
) -> None:
    async with scripted_app(tmp_path, launcher, 2) as app:
        launcher.ignored.add(("echo-0.1", "prepare"))
        changing = await begun(app.changes, replaced(1))
        await asyncio.wait_for(app.drain(), BOUND_S)
        with pytest.raises(NotChanged, match=r"^echo stops$"):
            await asyncio.wait_for(changing, BOUND_S)
    assert all(shard._exit.done() for shard in launcher.launched)
    assert "change.failed" not in caplog.text
