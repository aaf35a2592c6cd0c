"""Fake shards that do their part in a change of placement at once, but for what a test's script has them leave out."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from socket import socket
from typing import Any

from onelane.config import parse
from onelane.core.placement import Placement
from onelane.supervisor.app import AppSupervisor
from onelane.supervisor.app_sockets import AppSockets
from onelane.supervisor.launcher import RunningShard
from onelane.v1 import control_pb2

from tests.supervisor.fake_launcher import FakeLauncher, FakeShard, app_supervisor


class ScriptedLauncher(FakeLauncher):
    """Each shard is named NAME.LIFE. See the module."""

    def __init__(self) -> None:
        self.trace: list[str] = []
        """Messages and kills, in order."""
        super().__init__(self.trace)
        self.ignored: set[tuple[str, str]] = set()
        """(NAME.LIFE, kind of message) that the shard does not follow."""
        self.deadly: set[tuple[str, str]] = set()
        """As `ignored`; and the process dies of it."""
        self.failing: dict[str, str] = {}
        """NAME → why a shard of it does not start."""

    async def launch(self, sockets: Sequence[socket]) -> RunningShard:
        running = await super().launch(sockets)
        shard = self.launched[-1]
        shard.line.react = lambda message: self._react(shard, message)
        return running

    def _react(self, shard: FakeShard, message: control_pb2.ToShard) -> None:
        kind = str(message.WhichOneof("kind"))
        if (shard.line.name, kind) in self.deadly:
            shard.end("signal SIGKILL")
        elif (shard.line.name, kind) not in self.ignored:
            follow = getattr(self, f"_follow_{kind}", None)
            if follow is not None:
                follow(shard, getattr(message, kind))

    def _follow_setup(self, shard: FakeShard, setup: control_pb2.Setup) -> None:
        if reason := self.failing.get(setup.name):
            shard.line.deliver(failed=control_pb2.Failed(reason=reason))
            shard.end("exit code 1")
            return
        shard.line.deliver(ready=control_pb2.Ready(pid=setup.life))
        if setup.HasField("change"):
            self._follow_prepare(shard, setup.change)

    def _follow_prepare(self, shard: FakeShard, prepare: control_pb2.Prepare) -> None:
        life = int(shard.line.name.rpartition(".")[2])
        if life in {member.life for member in prepare.before.members}:
            shard.line.deliver(departed=prepare.after.epoch)
        if life in {member.life for member in prepare.after.members}:
            shard.line.deliver(arrived=prepare.after.epoch)
        shard.line.deliver(progress=control_pb2.HandoffProgress(epoch=prepare.after.epoch))

    def _follow_propose(self, shard: FakeShard, settings: control_pb2.Settings) -> None:
        shard.line.deliver(proposed=control_pb2.Proposed(generation=settings.generation))

    def _follow_commit(self, shard: FakeShard, settings: control_pb2.Settings) -> None:
        shard.line.deliver(committed=settings.generation)

    def _follow_drain(self, shard: FakeShard, _: control_pb2.Drain) -> None:
        shard.line.deliver(drained=control_pb2.Drained())

    def _follow_stop(self, shard: FakeShard, _: control_pb2.Stop) -> None:
        shard.end("exit code 0")


@asynccontextmanager
async def scripted_app(
    folder: Path, launcher: ScriptedLauncher, shards: int, **settings: Any
) -> AsyncIterator[AppSupervisor]:
    """An app `echo` whose shards are ready, with real sockets."""
    listen = {"services": ["tests.echo.service:Echo"], "listen": "127.0.0.1:0", "shards": shards}
    sockets = AppSockets("echo", parse({"apps": {"echo": listen | settings}}).apps["echo"], folder)
    for index in range(shards):
        sockets.claim_own(index)
    placement = Placement(1, tuple(sockets.member(index) for index in range(shards)))
    app = app_supervisor(shards, launcher, placement=placement, **settings)
    app.changes.sockets = sockets
    sockets.listen()
    for shard in app.shards:
        shard.listen(*sockets.listen_for(shard.index, shard.member))
    loop = asyncio.get_running_loop()
    supervising = [loop.create_task(app.supervise(shard)) for shard in app.shards]
    for shard in app.shards:
        await shard.ready.wait()
    launcher.trace.clear()
    try:
        yield app
    finally:
        await app.drain()
        await asyncio.gather(*supervising, return_exceptions=True)
        app.close_sockets()
        sockets.close()
