"""`onelane.run`: in a script services serve until Ctrl-C; where a loop runs a thread serves until they are stopped."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onelane
import pytest
from onelane.cli.script import RunningServices
from onelane.errors import BadConfig, OnelaneError, PortTaken

from tests.bounds import BOUND_S
from tests.echo.service import Echo
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.ports import reserved
from tests.running_app import ROOT, http_request

pytestmark = pytest.mark.slow
SETTINGS: dict[str, Any] = {"listen": "127.0.0.1:0", "max_late_s": 60}
"""On a busy machine a shard runs late, and would refuse calls."""
SCRIPT = """
import onelane
from tests.echo.service import Echo


class Mine(Echo):
    def reply(self, request):
        answer = super().reply(request)
        answer.text = "mine"
        return answer

"""


def started(*services: Any, **settings: Any) -> RunningServices:
    running = onelane.run(services, block=False, **SETTINGS | settings)
    assert running is not None
    return running


async def reply_of(address: str, key: str = "k") -> Any:
    async with onelane.connect(address) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        return await stub.Unary(EchoRequest(key=key, text="hi"))


async def test_within_a_running_loop_a_thread_serves_until_it_is_stopped() -> None:
    running = onelane.run(Echo, shards=2, **SETTINGS)
    assert running is not None
    assert repr(running) == f"<RunningServices tests.echo.service:Echo on {running.address}>"
    shards = {(await reply_of(running.address, f"k{number}")).shard for number in range(48)}
    assert shards == {"app-0", "app-1"}
    running.stop()
    running.stop()
    assert repr(running).endswith("Echo stopped>")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*running.address.split(":"))
    assert not [thread for thread in threading.enumerate() if thread.name == "onelane"]


def test_the_memory_of_a_process_that_is_not_a_shard_s_is_left_as_it_is() -> None:
    before = gc.get_threshold(), gc.get_freeze_count()
    with started(Echo):
        assert (gc.get_threshold(), gc.get_freeze_count()) == before


async def test_two_may_run_at_once_and_each_has_its_own_state() -> None:
    with started(Echo) as first, started("tests.echo.service:Echo") as second:
        assert [(await reply_of(first.address)).seen for _ in range(2)] == [1, 2]
        assert (await reply_of(second.address)).seen == 1


async def test_the_page_is_served_where_it_is_asked_for() -> None:
    with reserved() as port, started(Echo, admin=f"127.0.0.1:{port}") as running:
        status, body = await asyncio.to_thread(http_request, f"http://127.0.0.1:{port}/healthz")
        assert (status, "1/1 shards ready" in body) == (200, True)
        assert (await reply_of(running.address)).text == "hi"


running_services: list[RunningServices] = []


class StopsItself(Echo):
    async def Unary(self, request: Any, context: Any) -> Any:
        running_services.pop().stop()
        return self.reply(request)


async def test_a_service_may_stop_itself_and_its_call_is_answered() -> None:
    running = started(StopsItself)
    running_services.append(running)
    assert (await reply_of(running.address)).text == "hi"
    await asyncio.to_thread(running.stop)


class Failing(Echo):
    def __init__(self, shard: onelane.Shard) -> None:
        raise ValueError("no database")


def test_what_keeps_services_from_starting_is_raised_where_they_are_run() -> None:
    class Local(Echo):
        pass

    for services, settings, kind, fault in (
        ([Failing], {}, OnelaneError, "ValueError: no database"),
        ([Local], {}, BadConfig, "is no class of a module, but of a function"),
        ([object()], {}, BadConfig, "expected servicer classes"),
        ([], {}, BadConfig, "services"),
        ([Echo], {"shardz": 2}, BadConfig, "is not a setting"),
        ([Echo], {"shards": 0}, BadConfig, "shards"),
        (["nothing:There"], {}, OnelaneError, "no module 'nothing'"),
    ):
        with pytest.raises(kind, match=fault):
            started(*services, **settings)
    with reserved() as port:
        address = f"127.0.0.1:{port}"
        with pytest.raises(OnelaneError, match="ValueError: no database"):
            started(Failing, listen=address)
        # It has let go of the port.
        started(Echo, listen=address).stop()
    with started(Echo) as running, pytest.raises(PortTaken, match=running.address):
        started(Echo, listen=running.address)
    assert not [thread for thread in threading.enumerate() if thread.name == "onelane"]


@contextmanager
def script(folder: Path, text: str) -> Iterator[subprocess.Popen[str]]:
    (folder / "script.py").write_text(SCRIPT + text)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command, environment = [sys.executable, "script.py"], os.environ | {"PYTHONPATH": path}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_a_script_serves_its_own_class_until_ctrl_c(tmp_path: Path) -> None:
    run = 'onelane.run([Mine], listen="127.0.0.1:0", max_late_s=60)\nprint("ended")\n'
    with script(tmp_path, run) as process:
        assert process.stdout is not None
        words = (await asyncio.to_thread(process.stdout.readline)).split()
        assert words[:3] == ["onelane:", "ready", "on"]
        assert (await reply_of(words[3].rstrip(";"))).text == "mine"
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, 30) == 0
        assert process.stdout.read() == "ended\n"


def test_a_script_that_ends_without_stopping_them_ends_cleanly(tmp_path: Path) -> None:
    run = 'print(onelane.run([Mine], listen="127.0.0.1:0", block=False).address)\n'
    with script(tmp_path, run) as process:
        output, errors = process.communicate(timeout=BOUND_S)
    assert (process.returncode, output.startswith("127.0.0.1:"), "Traceback" in errors) == (0, True, False)
    assert "shard.drained" in errors
