"""A lane that does not tick is noticed, told and noticed again when it ticks; nothing else is."""

import asyncio
import os
import signal
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.config import parse
from onelane.supervisor.inline import InlineLauncher
from onelane.supervisor.liveness import ASKED, LOOKS, Finding, Liveness, looks_of
from onelane.supervisor.shared_resources import TelemetryOptions
from onelane.supervisor.supervisor import Supervisor

from tests.bounds import BOUND_S
from tests.conftest import Where
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import RunningApp, echo, eventually, http_request, running

UNRESPONSIVE_S = 0.5


LIMITED = looks_of(5.0, None)


def look(lane: Liveness, times: int, **more: bool) -> list[Finding]:
    return [lane.look(LIMITED, **more) for _ in range(times)]


def test_a_silent_lane_is_asked_once_and_then_lost_once() -> None:
    findings = look(Liveness(), 3 * LOOKS)
    assert findings.index(Finding.ASK) == ASKED - 1
    assert findings.index(Finding.LOST) == LOOKS
    assert [findings.count(finding) for finding in (Finding.ASK, Finding.LOST)] == [1, 1]


def test_a_lane_that_answers_each_question_stays_responsive() -> None:
    lane = Liveness()
    for _ in range(10 * LOOKS):
        if look(lane, 1) == [Finding.ASK]:
            lane.heard()
    assert lane.is_responsive


def test_one_message_makes_a_lost_lane_responsive() -> None:
    lane = Liveness()
    look(lane, LOOKS + 1)
    assert not lane.is_responsive
    lane.heard()
    assert lane.is_responsive
    assert Finding.LOST not in look(lane, LOOKS)


def test_silence_is_not_counted_while_the_supervisor_itself_did_not_run() -> None:
    lane = Liveness()
    for _ in range(4):
        look(lane, LOOKS - 1)
        look(lane, 1, is_late=True)
    assert lane.is_responsive


def test_a_late_look_does_not_call_a_lost_lane_responsive() -> None:
    lane = Liveness()
    look(lane, LOOKS + 1)
    look(lane, 1, is_late=True)
    assert not lane.is_responsive


@pytest.mark.parametrize("unresponsive_s", [0.0, 0.5, 1.0, 5.0, 600.0])
@pytest.mark.parametrize("replace_stalled_s", [None, 1.0, 30.0])
def test_silence_means_what_the_settings_say_to_within_some_looks(
    unresponsive_s: float, replace_stalled_s: float | None
) -> None:
    looks = looks_of(unresponsive_s, replace_stalled_s)
    if unresponsive_s:
        assert looks.until_lost is not None
        assert 0 <= (looks.until_lost - 1) * looks.interval_s - unresponsive_s < looks.interval_s
    if replace_stalled_s is not None:
        assert looks.until_hung is not None
        assert 0 <= (looks.until_hung - ASKED) * looks.interval_s - 2 * replace_stalled_s < looks.interval_s
    assert bool(looks.interval_s) == bool(unresponsive_s or replace_stalled_s)


def test_a_silent_lane_is_hung_only_while_it_has_a_cpu() -> None:
    lane, looks = Liveness(), looks_of(0.0, 1.0)
    assert looks.until_hung is not None
    for _ in range(10 * LOOKS):
        assert lane.look(looks, lacks_cpu=True) is not Finding.HUNG
    findings = [lane.look(looks) for _ in range(looks.until_hung)]
    assert findings.index(Finding.HUNG) == looks.until_hung - 1
    assert lane.is_responsive, "unresponsive_s = 0"


def test_before_any_port_is_claimed_no_shard_is_ready() -> None:
    config = parse(tomllib.loads(echo(2)))
    supervisor = Supervisor(config, InlineLauncher(), app_dir="", sinks=[], telemetry=TelemetryOptions())
    assert supervisor.health() == (False, "0/2 shards ready")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    with running(tmp_path_factory.mktemp("liveness"), echo(2, f"unresponsive_s = {UNRESPONSIVE_S}")) as app:
        yield app


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Processes that are stopped by SIGSTOP in this order, and go on in the reverse one."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)


def states(app: RunningApp) -> list[str]:
    return [str(shard["state"]) for shard in app.shards()]


@pytest.mark.slow
async def test_status_health_check_and_log_agree_on_a_stopped_shard(app: RunningApp) -> None:
    assert http_request(f"http://{app.admin}/healthz") == (200, "2/2 shards ready\n")
    pid = app.shards()[1]["pid"]
    with stopped(pid):
        await eventually(lambda: states(app) == ["ready", "unresponsive"])
        assert http_request(f"http://{app.admin}/healthz") == (503, "1/2 shards ready; echo-1 is unresponsive\n")
        # The other one serves calls, and no restart of all would help.
        assert http_request(f"http://{app.admin}/readyz") == (200, "ready\n")
        with stopped(app.shards()[0]["pid"]):
            await eventually(lambda: states(app) == ["unresponsive", "unresponsive"])
            assert http_request(f"http://{app.admin}/readyz") == (503, "no shard is ready of echo\n")
            assert http_request(f"http://{app.admin}/livez") == (200, "alive\n")
        await eventually(lambda: states(app) == ["ready", "unresponsive"])
        assert f"shard.unresponsive shard=echo-1 pid={pid} silent_s=0.5" in app.log.read_text()
    await eventually(lambda: states(app) == ["ready", "ready"])
    await eventually(lambda: "shard.responsive shard=echo-1" in app.log.read_text())
    assert http_request(f"http://{app.admin}/healthz") == (200, "2/2 shards ready\n")
    assert app.shards()[1]["pid"] == pid


@pytest.mark.slow
async def test_calls_to_the_keys_of_a_stopped_shard_fail_soon_and_go_on_with_it(app: RunningApp) -> None:
    where = Where(app)
    key = where.key_of("echo-1")
    assert (await where.away(key).Unary(EchoRequest(key=key))).shard == "echo-1"
    refused = (grpc.StatusCode.UNAVAILABLE, "shard echo-1, which owns the key, is unresponsive")
    begun = refused
    # Calls that are to begin before anybody knows: on a busy machine again, until they do.
    while begun == refused:
        with stopped(app.shards()[1]["pid"]):
            # One is forwarded, one's connection is handed over.
            begun, _ = await asyncio.gather(
                code_of(where.away(key).Unary(EchoRequest(key=key), timeout=BOUND_S)), code_of_new_connection(app, key)
            )
            assert await code_of(where.away(key).Unary(EchoRequest(key=key), timeout=BOUND_S)) == refused
            assert await code_of(where.away(key).Upload(iter([EchoRequest(key=key)]), timeout=BOUND_S)) == refused
            assert await code_of_new_connection(app, key) == refused
        await eventually(lambda: states(app) == ["ready", "ready"])
        # Its sibling is told at the supervisor's next look.
        while await code_of(where.away(key).Unary(EchoRequest(key=key))) == refused:
            pass
    assert begun == (grpc.StatusCode.UNAVAILABLE, "shard echo-1 does not answer: its lane does not tick")
    assert (await where.away(key).Unary(EchoRequest(key=key))).shard == "echo-1"
    await where.close()


async def code_of(call: Any) -> tuple[grpc.StatusCode, str]:
    return await call.code(), await call.details()


async def code_of_new_connection(app: RunningApp, key: str) -> tuple[grpc.StatusCode, str]:
    async with grpc.aio.insecure_channel(app.listen["echo"], [("grpc.use_local_subchannel_pool", 1)]) as channel:
        return await code_of(echo_pb2_grpc.EchoStub(channel).Unary(EchoRequest(key=key), timeout=BOUND_S))


@pytest.mark.slow
async def test_a_whole_app_that_was_stopped_for_a_while_raises_no_alarm(app: RunningApp) -> None:
    alarms = app.log.read_text().count("shard.unresponsive")
    with stopped(app.process.pid, *(shard["pid"] for shard in app.shards())):
        goes_on_at = time.monotonic() + 2 * UNRESPONSIVE_S
        await eventually(lambda: time.monotonic() > goes_on_at)
    goes_on_at = time.monotonic() + 1.5 * UNRESPONSIVE_S
    await eventually(lambda: time.monotonic() > goes_on_at)
    assert states(app) == ["ready", "ready"]
    assert app.log.read_text().count("shard.unresponsive") == alarms
