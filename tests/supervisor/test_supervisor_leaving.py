"""A machine that is to be stopped is taken out of use first: `onelane leave`, at the seam to what moves its keys."""

import asyncio
import json
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc.aio
import pytest
from click.testing import CliRunner, Result
from onelane.cli.exports import telemetry_options
from onelane.cli.main import main
from onelane.config import parse
from onelane.supervisor.admin import server
from onelane.supervisor.supervisor import Supervisor

from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.echo.v1.echo_pb2_grpc import EchoStub
from tests.running_app import ROOT, echo, http_request, running
from tests.supervisor.fake_launcher import FakeLauncher


@asynccontextmanager
async def machine(leave: Callable[[], Awaitable[None]]) -> AsyncIterator[str]:
    """The admin address of a supervisor whose shards have not started."""
    config = parse(tomllib.loads(f'admin = "127.0.0.1:0"\n{echo(1)}'))
    supervisor = Supervisor(config, FakeLauncher([]), app_dir=str(ROOT), sinks=[], telemetry=telemetry_options({}))
    supervisor.apps.append(
        cast(Any, SimpleNamespace(name="echo", placing=SimpleNamespace(leave=leave, owns_keys=False)))
    )
    async with server.serving(supervisor) as address:
        yield address.removeprefix("http://")


async def onelane_leave(address: str, *options: str) -> Result:
    arguments = ["leave", "--admin", address, *options]
    return await asyncio.to_thread(lambda: CliRunner().invoke(main, arguments))


async def seen(target: str) -> int:
    """How many calls of one key the app has served, with one more on a connection of its own."""
    async with grpc.aio.insecure_channel(target) as channel:
        reply: EchoReply = await EchoStub(channel).Unary(EchoRequest(key="apples"))
        return reply.seen


async def test_leave_returns_once_the_keys_have_moved() -> None:
    begun, moved = asyncio.Event(), asyncio.Event()

    async def leave() -> None:
        begun.set()
        await moved.wait()

    async with machine(leave) as address:
        leaving = asyncio.create_task(onelane_leave(address))
        await begun.wait()
        status, text = await asyncio.to_thread(http_request, f"http://{address}/readyz")
        assert (status, text, leaving.done()) == (503, "it has been told to leave\n", False)
        moved.set()
        run = await leaving
    assert (run.exit_code, run.stdout) == (0, "the machine owns no keys any more\n")


@pytest.mark.slow
async def test_keys_that_do_not_move_in_time_fail_the_command_and_go_on_to_move() -> None:
    moved, has_moved = asyncio.Event(), asyncio.Event()

    async def leave() -> None:
        await moved.wait()
        has_moved.set()

    async with machine(leave) as address:
        run = await onelane_leave(address, "--within", "1")
        assert (run.exit_code, run.stderr) == (
            1,
            f"onelane: {address} may own keys still after 1 s; it goes on to move them\n",
        )
        moved.set()
        await has_moved.wait()
        assert json.loads((await onelane_leave(address, "--json")).stdout) == {"moved": True}


@pytest.mark.slow
async def test_a_machine_without_a_cluster_keeps_its_keys_and_serves_until_it_is_stopped(tmp_path: Path) -> None:
    with running(tmp_path, echo(1)) as app:
        assert await seen(app.listen["echo"]) == 1
        run = await onelane_leave(app.admin)
        assert (run.exit_code, run.stdout) == (0, "no other machine has taken the keys: they stay with this one\n")
        assert http_request(f"http://{app.admin}/readyz")[0] == 503
        assert http_request(f"http://{app.admin}/livez")[0] == 200
        assert await seen(app.listen["echo"]) == 2
        assert await asyncio.to_thread(app.stop) == 0


async def test_leave_says_where_no_supervisor_answers() -> None:
    run = await onelane_leave("127.0.0.1:1")
    assert (run.exit_code, "nothing listens at 127.0.0.1:1" in run.stderr) == (1, True)
