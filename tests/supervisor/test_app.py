"""The shards of one app are restarted when they die, drained, recycled, and given new settings. See scenarios/ too."""

import asyncio
import errno
import json
import math
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.supervisor import app as app_module
from onelane.supervisor import supervised_shard
from onelane.supervisor.app import AppSupervisor, ShardFailed
from onelane.supervisor.shard_state import ShardState
from onelane.supervisor.supervised_shard import Incarnation
from onelane.telemetry.collector.sequence import ReportSequence
from onelane.v1 import control_pb2

from tests.bounds import BOUND_S
from tests.conftest import Where
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.gate import Gate
from tests.running_app import echo, eventually, is_running, running
from tests.supervisor.fake_launcher import FakeControl, FakeLauncher, app_supervisor, settle


@asynccontextmanager
async def supervised(launcher: FakeLauncher, shards: int, **settings: Any) -> AsyncIterator[AppSupervisor]:
    """An app whose fake shards have been launched and are not ready yet."""
    app = app_supervisor(shards, launcher, **settings)
    async with asyncio.TaskGroup() as tasks:
        supervising = [tasks.create_task(app.supervise(shard)) for shard in app.shards]
        await settle()
        yield app
        for task in supervising:
            task.cancel()


@pytest.fixture
def launcher() -> FakeLauncher:
    return FakeLauncher([])


def become_ready(launcher: FakeLauncher, *names: str) -> None:
    for name in names:
        launcher.shard(name).line.deliver(ready=control_pb2.Ready(pid=7))


async def begun(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    task = asyncio.get_running_loop().create_task(work)
    await settle()
    return task


async def test_the_first_crash_is_restarted_at_once_and_the_next_ones_after_a_back_off(
    launcher: FakeLauncher, caplog: pytest.LogCaptureFixture
) -> None:
    async with supervised(launcher, 1) as app:
        become_ready(launcher, "echo-0")
        for crashes in (1, 2, 3):
            await settle()
            launcher.shard("echo-0").end("exit code 1")
            while len(launcher.launched) == crashes:
                await settle()
        assert app.shards[0].restarts == 3
    deaths = [record for record in caplog.records if record.getMessage().startswith("shard.died")]
    # As it was drawn: its text may round it to 0.
    pauses_s: list[Any] = [record.args[-1] for record in deaths if isinstance(record.args, tuple)]
    assert [pause_s > 0 for pause_s in pauses_s] == [False, True, True]
    assert "shard.died shard=echo-0 how=exit code 1 restart_in_s=0.000" in caplog.text


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.EMFILE, "Too many open files"),
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/venv/bin/python"),
        RuntimeError("a fault of ours"),
    ],
    ids=lambda fault: type(fault).__name__,
)
async def test_a_shard_that_cannot_be_launched_is_tried_again_and_the_others_do_not_notice(
    launcher: FakeLauncher, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    async with supervised(launcher, 2) as app:
        become_ready(launcher, "echo-0", "echo-1")
        await settle()
        first, other = launcher.shard("echo-0"), launcher.shard("echo-1")
        launcher.faults = [fault, fault]
        first.end("signal SIGKILL")
        while launcher.shard("echo-0") is first:
            await settle()
        become_ready(launcher, "echo-0")
        await settle()
        assert [shard.state for shard in app.shards] == [ShardState.READY] * 2
        assert launcher.shard("echo-1") is other
    assert str(fault) in caplog.text


async def test_a_message_that_cannot_be_followed_ends_its_shard_alone(
    launcher: FakeLauncher, caplog: pytest.LogCaptureFixture
) -> None:
    """A shard is ready once; the table of its states has no second time."""
    async with supervised(launcher, 2) as app:
        become_ready(launcher, "echo-0", "echo-1", "echo-0")
        await settle()
        become_ready(launcher, "echo-0")
        await settle()
        assert [(shard.state, shard.restarts) for shard in app.shards] == [(ShardState.READY, 1), (ShardState.READY, 0)]
    assert "shard.supervision_failed shard=echo-0" in caplog.text


async def test_a_shard_that_cannot_be_launched_at_first_says_so_in_one_sentence(launcher: FakeLauncher) -> None:
    launcher.faults = [FileNotFoundError(errno.ENOENT, "No such file or directory", "/venv/bin/python")]
    app = app_supervisor(1, launcher)
    with pytest.raises(ShardFailed, match=r"shard echo-0 failed to start: it cannot be run: .*'/venv/bin/python'"):
        await app.supervise(app.shards[0])


async def test_a_shard_that_does_not_stop_when_told_to_is_killed(
    launcher: FakeLauncher, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "SHARD_END_S", 0.01)
    async with supervised(launcher, 1) as app:
        await app.drain()
        assert "shard.killed shard=echo-0" in caplog.text
        await settle()
        assert app.shards[0].state is ShardState.STOPPED


async def test_a_start_is_bounded_and_says_so(launcher: FakeLauncher) -> None:
    app = app_supervisor(1, launcher, start_s=0.01)
    with pytest.raises(ShardFailed, match=r"echo-0 failed to start: it was not ready within 0.02 s, so it was killed"):
        await app.supervise(app.shards[0])


async def test_a_shard_that_was_ready_in_time_may_live_as_long_as_it_likes(launcher: FakeLauncher) -> None:
    async with supervised(launcher, 1, start_s=0.05) as app:
        become_ready(launcher, "echo-0")
        await settle()
        assert app.shards[0].incarnation is not None
        assert app.shards[0].incarnation.start.deadline == math.inf


async def test_an_app_stops_though_a_shard_stands_still_since_it_was_launched(
    launcher: FakeLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a process takes no message: it has not opened its end of the control line."""
    monkeypatch.setattr(app_module, "SHARD_END_S", 0.01)
    monkeypatch.setattr(supervised_shard, "MAKE_ROOM_S", 0.01)
    monkeypatch.setattr(FakeControl, "stands_still", True)
    async with supervised(launcher, 1) as app:
        await asyncio.wait_for(app.drain(), BOUND_S)
        await settle()
        assert app.shards[0].state is ShardState.STOPPED


async def test_new_settings_are_proposed_to_ready_shards_alone_and_objections_are_returned(
    launcher: FakeLauncher,
) -> None:
    async with supervised(launcher, 2) as app:
        become_ready(launcher, "echo-0")
        await settle()
        proposing = await begun(app.service_settings.propose({"limit": 2}, answer_s=30.0))
        line = launcher.shard("echo-0").line
        proposal = line.sent[-1].propose
        assert (proposal.generation, proposal.config) == (2, '{"limit": 2}')
        assert [message.WhichOneof("kind") for message in launcher.shard("echo-1").line.sent] == ["setup"]
        line.deliver(proposed=control_pb2.Proposed(generation=2, fault="limit is too small"))
        assert await proposing == ["limit is too small"]
        assert app.settings.config == {}


async def test_a_shard_that_does_not_answer_a_proposal_objects(launcher: FakeLauncher) -> None:
    async with supervised(launcher, 1) as app:
        become_ready(launcher, "echo-0")
        await settle()
        assert await app.service_settings.propose({}, answer_s=0.01) == ["shard echo-0 has not answered in 0.01 s"]


@pytest.mark.parametrize("asked", ["propose", "commit"])
async def test_a_shard_that_dies_is_waited_for_no_longer(launcher: FakeLauncher, asked: str) -> None:
    async with supervised(launcher, 2) as app:
        await app.service_settings.propose({}, answer_s=3600.0)
        become_ready(launcher, "echo-0", "echo-1")
        await settle()
        reloading = await begun(
            app.service_settings.propose({}, answer_s=3600.0)
            if asked == "propose"
            else app.service_settings.commit({"limit": 2})
        )
        launcher.shard("echo-0").end("signal SIGKILL")
        answer: Any = {"proposed": control_pb2.Proposed(generation=3)} if asked == "propose" else {"committed": 2}
        launcher.shard("echo-1").line.deliver(**answer)
        await settle()
        assert reloading.done()


async def test_a_shard_that_was_starting_when_settings_were_committed_gets_them_once_it_is_ready(
    launcher: FakeLauncher,
) -> None:
    async with supervised(launcher, 1) as app:
        await app.service_settings.propose({"limit": 2}, answer_s=30.0)
        await app.service_settings.commit({"limit": 2})
        become_ready(launcher, "echo-0")
        await settle()
        commit = launcher.shard("echo-0").line.sent[-1].commit
        assert (commit.generation, commit.config) == (2, '{"limit": 2}')


async def test_a_restarted_shard_is_set_up_with_the_newest_settings(launcher: FakeLauncher) -> None:
    async with supervised(launcher, 1) as app:
        become_ready(launcher, "echo-0")
        await settle()
        first = launcher.shard("echo-0")
        committing = await begun(app.service_settings.commit({"limit": 3}))
        first.line.deliver(committed=1)
        await committing
        first.end("exit code 1")
        await settle()
        setup = launcher.shard("echo-0").line.sent[0].setup
        assert launcher.shard("echo-0") is not first
        assert json.loads(setup.settings)["config"] == {"limit": 3}


@pytest.mark.slow
async def test_a_shard_that_dies_is_restarted_and_the_others_are_untouched(tmp_path: Path) -> None:
    with running(tmp_path, echo(2)) as cluster:
        before = {s["name"]: s for s in cluster.shards()}
        os.kill(before["echo-0"]["pid"], signal.SIGKILL)
        await eventually(lambda: cluster.shards()[0]["restarts"] == 1 and cluster.shards()[0]["state"] == "ready")
        after = {s["name"]: s for s in cluster.shards()}
        assert after["echo-0"]["pid"] != before["echo-0"]["pid"]
        assert after["echo-0"]["address"] == before["echo-0"]["address"]
        assert (after["echo-1"]["pid"], after["echo-1"]["restarts"]) == (before["echo-1"]["pid"], 0)
        assert cluster.metric("onelane_restarts_total", onelane_shard="echo-0") == 1
        where = Where(cluster)
        for key in map(str, range(20)):
            reply = await where.away(key).Unary(EchoRequest(key=key), wait_for_ready=True, timeout=BOUND_S)
            assert reply.shard == where.owner_of(key)
        await where.close()


@pytest.mark.slow
async def test_usr2_restarts_the_shards_one_by_one_and_loses_no_held_call(tmp_path: Path) -> None:
    with running(tmp_path, echo(2)) as cluster:
        where = Where(cluster)
        before = [s["pid"] for s in cluster.shards()]
        gate, key = Gate(tmp_path), where.key_of("echo-0")
        held = where.home(key).Misbehave(EchoRequest(key=key, order=f"hold_at {gate}"))
        async with gate.occupied():
            cluster.process.send_signal(signal.SIGUSR2)
            await eventually(lambda: cluster.is_changing())
        assert (await held).shard == "echo-0"
        await eventually(lambda: "supervisor.recycled" in cluster.log.read_text())
        after = cluster.shards()
        assert not set(before) & {s["pid"] for s in after}
        assert [(s["state"], s["restarts"]) for s in after] == [("ready", 0)] * 2
        assert (await where.home(key).Unary(EchoRequest(key=key), wait_for_ready=True)).shard == "echo-0"
        await where.close()


@pytest.mark.slow
async def test_a_shard_process_that_is_sent_sigterm_drains_and_another_follows(tmp_path: Path) -> None:
    with running(tmp_path, echo(2)) as cluster:
        where = Where(cluster)
        before = cluster.shards()[0]["pid"]
        gate, key = Gate(tmp_path), where.key_of("echo-0")
        held = where.home(key).Misbehave(EchoRequest(key=key, order=f"hold_at {gate}"))
        async with gate.occupied():
            os.kill(before, signal.SIGTERM)
            await eventually(lambda: cluster.is_changing())
        assert (await held).shard == "echo-0"
        await eventually(lambda: not is_running(before) and not cluster.is_changing())
        assert cluster.shards()[0]["pid"] != before
        assert cluster.shards()[0]["restarts"] == 0
        await where.close()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["processes", "inline"])
async def test_a_drain_lets_calls_finish_and_exits_with_zero(tmp_path: Path, mode: str) -> None:
    """The held call is forwarded, so its owner must outlive the drain of the shard it landed on."""
    inline = ["--inline"] if mode == "inline" else []
    with running(tmp_path, echo(2), *inline) as cluster:
        where = Where(cluster)
        gate = Gate(tmp_path)
        held = where.away("k").Misbehave(EchoRequest(key="k", order=f"hold_at {gate}"))
        async with gate.occupied():
            pids = [s["pid"] for s in cluster.shards()]
            cluster.process.send_signal(signal.SIGTERM)
            await eventually(lambda: {s["state"] for s in cluster.shards()} == {"draining"})
        assert (await held).shard == where.owner_of("k")
        assert await asyncio.to_thread(cluster.process.wait, 30) == 0
        assert not any(map(is_running, pids))
        await where.close()


@pytest.mark.slow
async def test_a_drain_is_bounded(tmp_path: Path) -> None:
    with running(tmp_path, echo(1, "drain_s = 0.3")) as cluster:
        where = Where(cluster)
        held = where.shared.Hold(EchoRequest(key="k"))
        await eventually(lambda: cluster.metric("onelane_calls_in_flight"))
        cluster.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await held
        assert caught.value.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
        assert await asyncio.to_thread(cluster.process.wait, 30) == 0
        await where.close()


async def test_what_is_delivered_while_a_shard_is_sent_what_came_before_it_was_ready_comes_after_that() -> None:
    """A change of placement is told in order, also to a life whose line has no room for a while."""
    sent: list[int] = []

    async def send(message: control_pb2.ToShard) -> None:
        sent.append(message.collect)
        await settle()

    running: Any = SimpleNamespace(control=SimpleNamespace(send=send))
    incarnation = Incarnation(running, ReportSequence(1))
    for number in (1, 2, 3):
        await incarnation.deliver(control_pb2.ToShard(collect=number))
    incarnation.is_ready = True
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(incarnation.send_deferred())
        await asyncio.sleep(0)
        tasks.create_task(incarnation.deliver(control_pb2.ToShard(collect=4)))
    await incarnation.deliver(control_pb2.ToShard(collect=5))
    assert sent == [1, 2, 3, 4, 5]
