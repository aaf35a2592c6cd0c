"""`onelane turns`: a turn that is stuck can be seen, and ended."""

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from click.testing import CliRunner
from onelane.cli.main import main

from tests.bounds import BOUND_S
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.echo.v1.echo_pb2_grpc import EchoStub
from tests.running_app import RunningApp, echo, eventually, running

SERVICE = Path(__file__).with_name("stuck_service.py")
LINE = next(number for number, line in enumerate(SERVICE.read_text().splitlines(), 1) if "is shown" in line)
pytestmark = pytest.mark.slow


STUCK = echo(2, "drain_s = 0.2").replace("tests.echo.service:Echo", "tests.supervisor.admin.stuck_service:Stuck")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    """Each test leaves it without a turn that is held."""
    with running(tmp_path_factory.mktemp("stuck"), STUCK) as cluster:
        yield cluster


def turns(cluster: RunningApp, *arguments: str) -> Any:
    run = CliRunner().invoke(main, ["turns", "echo", "--admin", cluster.admin, "--json", *arguments])
    assert run.exit_code == 0, run.stderr
    return json.loads(run.stdout)


def printed(cluster: RunningApp, *arguments: str) -> str:
    run = CliRunner().invoke(main, ["turns", *arguments, "--admin", cluster.admin])
    return run.output


@asynccontextmanager
async def stub_of(cluster: RunningApp) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(cluster.listen["echo"]) as channel:
        yield EchoStub(channel)


async def status_of(call: Any) -> tuple[grpc.StatusCode, str]:
    return await call.code(), await call.details()


async def test_a_held_turn_is_shown_with_its_line_and_its_waiters_and_ends_by_cancel(cluster: RunningApp) -> None:
    async with stub_of(cluster) as stub:
        stuck = stub.Unary(EchoRequest(key="k", order="stay"), timeout=BOUND_S)
        await eventually(lambda: turns(cluster)["held"] == 1)
        waits = stub.Unary(EchoRequest(key="k", text="next"), timeout=BOUND_S)
        await eventually(lambda: turns(cluster)["turns"][0]["waiting"] == 1)
        (turn,) = (await asyncio.to_thread(turns, cluster))["turns"]
        assert (turn["method"], turn["line"]) == ("echo.v1.Echo/Unary", f"{SERVICE}:{LINE}")
        # The app does not show keys.
        assert re.fullmatch("#[0-9a-f]{16}", turn["key"])
        assert [waiter["method"] for waiter in turn["waiters"]] == ["echo.v1.Echo/Unary"]
        assert 0 <= turn["waiters"][0]["seconds"] <= turn["seconds"] < 50
        row = printed(cluster, "echo").splitlines()[1].split()
        assert [row[1], *row[3:]] == [turn["key"], "echo.v1.Echo/Unary", f"{SERVICE}:{LINE}", "1", "echo.v1.Echo/Unary"]
        ended = await asyncio.to_thread(turns, cluster, "--cancel", turn["key"])
        assert (ended["ended"], ended["shard"]) == (True, turn["shard"])
        code, details = await status_of(stuck)
        assert (code, details) == (
            grpc.StatusCode.UNAVAILABLE,
            "its turn was ended by an operator: onelane turns --cancel",
        )
        assert (await waits).text == "next"
        await eventually(lambda: turns(cluster)["held"] == 0)


async def test_a_turn_that_was_taken_by_hand_ends_by_cancel(cluster: RunningApp) -> None:
    async with stub_of(cluster) as stub:
        chat = stub.Chat(timeout=BOUND_S)
        await chat.write(EchoRequest(key="h"))
        assert (await chat.read()).text == "taken"
        (turn,) = (await asyncio.to_thread(turns, cluster))["turns"]
        assert (turn["method"], turn["line"]) == ("echo.v1.Echo/Chat", f"{SERVICE}:{LINE}")
        assert (await asyncio.to_thread(turns, cluster, "--cancel", "h"))["ended"]
        assert (await stub.Unary(EchoRequest(key="h", text="free"), timeout=BOUND_S)).text == "free"
        assert await chat.code() is not grpc.StatusCode.OK
        await eventually(lambda: turns(cluster)["held"] == 0)


async def test_code_that_stays_in_its_turn_is_not_said_to_have_ended(tmp_path: Path) -> None:
    """For as long as its app runs: this one is its own."""
    with running(tmp_path, STUCK) as cluster:
        async with stub_of(cluster) as stub:
            stubborn = stub.Unary(EchoRequest(key="s", order="stay whatever comes"), timeout=BOUND_S)
            await eventually(lambda: turns(cluster)["held"] == 1)
            outcome = await asyncio.to_thread(printed, cluster, "echo", "--cancel", "s")
            assert "still holds the turn of s: it suppresses its cancellation" in outcome
            # Its client does not wait for it any more.
            assert await stubborn.code() is grpc.StatusCode.UNAVAILABLE


def test_what_is_not_there_is_printed(cluster: RunningApp) -> None:
    assert "echo holds no turn of the key 'nobody'" in printed(cluster, "echo", "--cancel", "nobody")
    assert "no app is called 'lobby'" in printed(cluster, "lobby")


async def test_a_lane_that_stands_still_is_named_and_holds_up_no_answer(cluster: RunningApp) -> None:
    pid = cluster.shards()[1]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        # On a busy machine the other one may be late as well.
        await eventually(lambda: turns(cluster)["silent"] == ["echo-1"])
    finally:
        os.kill(pid, signal.SIGCONT)
