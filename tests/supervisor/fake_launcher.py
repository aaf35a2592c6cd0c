"""Fake shards for a real `AppSupervisor`: a test delivers their messages and ends them; no process, no port."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from socket import socket
from typing import Any

from onelane.cluster.control import Control
from onelane.config import App, parse
from onelane.core.placement import Member, Placement
from onelane.supervisor.app import AppSupervisor
from onelane.supervisor.launcher import RunningShard
from onelane.supervisor.leased_lives import LeasedLives
from onelane.supervisor.shared_resources import SharedResources, TelemetryOptions
from onelane.telemetry.collector.collector import Collector
from onelane.v1 import control_pb2

from tests.bounds import BOUND_S

LOOP_TURNS = 20
"""Iterations of the loop after which all effects of an event have happened."""


class FakeControl:
    """See `onelane.cluster.control.Control`: the supervisor's end of the line to one fake shard."""

    stands_still = False
    """It reads nothing, or has not opened its end of the line: whoever sends waits until it is gone or `reads_on`."""
    react: Callable[[control_pb2.ToShard], None] | None = None
    """Called with each message, by a script of what the shard does."""

    def __init__(self, name: str, trace: list[str]) -> None:
        self.name = name
        self.sent: list[control_pb2.ToShard] = []
        self._trace = trace
        self._is_closed = asyncio.Event()
        self._reads_on = asyncio.Event()
        self._inbox: asyncio.Queue[control_pb2.ToSupervisor | None] = asyncio.Queue()

    async def send(self, message: Any) -> None:
        if self.stands_still:
            await self._reads_on.wait()
            if self._is_closed.is_set():
                return
        if message.WhichOneof("kind") == "setup":
            self.name = message.setup.name
            if self.react is not None:
                # Two lives of one name may live at once.
                self.name += f".{message.setup.life}"
        self.sent.append(message)
        self._trace.append(f"{self.name} gets {message.WhichOneof('kind')}")
        if self.react is not None:
            self.react(message)

    async def receive(self) -> Any | None:
        return await self._inbox.get()

    def close(self) -> None:
        self._is_closed.set()
        self._reads_on.set()
        self._inbox.put_nowait(None)

    def reads_on(self) -> None:
        """It reads what was sent to it meanwhile, and what is sent from now on."""
        self.stands_still = False
        self._reads_on.set()

    def deliver(self, **kind: Any) -> None:
        """A message from the shard."""
        self._inbox.put_nowait(control_pb2.ToSupervisor(**kind))


class FakeShard:
    """See `onelane.supervisor.launcher.RunningShard`."""

    def __init__(self, trace: list[str]) -> None:
        self.line = FakeControl("", trace)
        self.control: Control = self.line
        self._trace = trace
        self._exit: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def wait(self) -> str:
        # As of a process: whoever stops waiting ends nothing.
        return await asyncio.shield(self._exit)

    def kill(self) -> None:
        if not self._exit.done():
            self._trace.append(f"{self.line.name} is killed")
            self.end("signal SIGKILL")

    def lacks_cpu(self) -> bool:
        return False

    def end_hung(self) -> None:
        self.kill()

    def end(self, how: str) -> None:
        """The shard's process ends."""
        if not self._exit.done():
            self._exit.set_result(how)
            self.control.close()


class FakeLauncher:
    """See `onelane.supervisor.launcher.Launcher`. The messages and kills of the supervisor are appended to `trace`."""

    def __init__(self, trace: list[str]) -> None:
        self._trace = trace
        self.launched: list[FakeShard] = []
        self.faults: list[Exception] = []
        """The next launches raise these."""
        self.may_launch = asyncio.Event()
        """Cleared by a test, launches take until it is set."""
        self.may_launch.set()

    async def launch(self, sockets: Sequence[socket]) -> RunningShard:
        await self.may_launch.wait()
        if self.faults:
            raise self.faults.pop(0)
        self.launched.append(FakeShard(self._trace))
        return self.launched[-1]

    def shard(self, name: str) -> FakeShard:
        """The last one launched of a name."""
        return next(shard for shard in reversed(self.launched) if shard.line.name == name)


def app_supervisor(
    shards: int,
    launcher: FakeLauncher,
    placement: Placement | None = None,
    *,
    lives: LeasedLives | None = None,
    **settings: Any,
) -> AppSupervisor:
    """Of an app `echo`, with shards named echo-0, echo-1 and so on. placement: by default with made-up addresses."""
    configured = {"services": ["tests.echo.service:Echo"], "listen": "127.0.0.1:1", "shards": shards} | settings
    config = parse({"apps": {"echo": configured}})
    members = tuple(Member(f"echo-{i}", f"127.0.0.1:{i + 2}", f"echo-{i}.sock") for i in range(shards))
    app: App = config.apps["echo"]
    tasks: list[asyncio.Task[Any]] = []

    def start(work: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> None:
        tasks.append(asyncio.get_running_loop().create_task(work(*arguments)))

    resources = SharedResources(
        launcher=launcher,
        app_dir="",
        telemetry=TelemetryOptions(),
        collector=Collector(config, []),
        peers={},
        answer_status=lambda running, number: None,
        start_soon=start,
        start_shard=start,
        lives=lives,
    )
    return AppSupervisor("echo", app, placement or Placement(1, members), resources)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition()` holds, within `BOUND_S`."""
    async with asyncio.timeout(BOUND_S):
        while not condition():
            await settle()


async def settle() -> None:
    for _ in range(LOOP_TURNS):
        await asyncio.sleep(0)
