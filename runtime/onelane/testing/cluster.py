"""One or several apps in the process and event loop of a test, without ports.

    async with Cluster("service:Counter", shards=3) as cluster:
        counter = cluster.stub(counter_pb2_grpc.CounterStub)
        assert (await counter.Add(AddRequest(name="apples", amount=2))).total == 2

The shards are real, but listen on Unix sockets in a folder that is removed with the cluster. Keys have the owners that
they have on the ports of the file, so a test is the same on every machine.

`cluster.clock` stands still until `advance`: timers, ticks (and with them statistics and published messages) and the
times of spans follow it. Deadlines, and all else on the wire, follow the machine's clock.
"""

import asyncio
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import time
from typing import Any, TypeVar

import grpc.aio

from onelane import config
from onelane.client.channel import dial
from onelane.client.options import APP_DIALLING
from onelane.client.ring_channel import Channel
from onelane.cluster.control import placement_to_proto
from onelane.config import PORT_STRIDE, App, Config
from onelane.core import addresses
from onelane.core.auth_settings import AuthSettings
from onelane.core.identity import Identity, write_assertion
from onelane.core.placement import Member, Placement
from onelane.errors import BadConfig
from onelane.server import sockets
from onelane.server.native_listener import NativeListener
from onelane.shard.lifecycle import ShardLifecycle
from onelane.shard.reporter import TICK_S
from onelane.shard.wiring import Environment
from onelane.telemetry.codec import point_from_proto
from onelane.telemetry.collector.totals import Totals
from onelane.telemetry.spans import PackedSpans, SpanRecord
from onelane.telemetry.stats import attributes_of
from onelane.testing.clock import ManualClock
from onelane.v1 import control_pb2

S = TypeVar("S")
TESTS = "onelane-testing"
"""The app whose assertions of identity are those of tests."""
ITERATIONS = 20
"""Iterations of the event loop after each step of `advance`, for the tasks that the step has started."""


class Cluster:
    """See the module. An async context manager; owned by the loop that entered it."""

    def __init__(
        self,
        app: str | type | Config | Path,
        *,
        shards: int = 2,
        settings: Mapping[str, Any] | None = None,
        trace: bool = False,
    ) -> None:
        """app: a servicer class or its name "package.module:Class"; or a configuration, or the path of its file.

        shards: of each app. settings: of `[apps.NAME]`, for a servicer class. trace: record the spans of every call.

        Raises:
            BadConfig: the file, or a setting, is not valid.
        """
        self.clock = ManualClock(1_000_000.0)
        self.spans: list[SpanRecord] = []
        """The spans so far; new ones arrive with each tick (`advance`) and with `stats`."""
        self._config = _config_of(app, settings or {})
        self._count = shards
        self._trace = trace
        self._identity_key = secrets.token_bytes(32)
        self._totals = Totals()
        self._apps: dict[str, list[_Shard]] = {}
        self._channels: dict[str, Channel] = {}
        self._stack = AsyncExitStack()
        self._resolver_overrides: dict[str, str] = {}
        self._dialling = replace(APP_DIALLING, resolver_overrides=self._resolver_overrides)

    async def __aenter__(self) -> "Cluster":
        async with self._stack:
            folder = Path(tempfile.mkdtemp(prefix="onelane-"))
            self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
            self._lay_out(folder)
            # In reverse order: callers come first in a file, and the apps that they call must listen before they start.
            for shards in reversed(self._apps.values()):
                for shard in shards:
                    await shard.start()
                    self._stack.push_async_callback(shard.end)
            for name, app in self._config.apps.items():
                channel = Channel(app.listen, deadline_s=30.0, name=name, dialling=self._dialling)
                self._stack.push_async_callback(channel.close)
                # Before the channel has connected to every shard, calls would go to any shard, not to the owner.
                await channel.channel_ready()
                self._channels[name] = channel
            self._stack = self._stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    def _lay_out(self, folder: Path) -> None:
        for name, app in self._config.apps.items():
            settings = app.model_copy(update={"shards": self._count, "auth": _testable(app.auth)})
            host, port = addresses.split(app.listen)
            shared = f"unix:{folder / name}"
            self._resolver_overrides[app.listen] = shared
            own_addresses = [
                addresses.join(host, (port or 50051) + PORT_STRIDE * (index + 1)) for index in range(self._count)
            ]
            members = [Member(f"{name}-{i}", own, str(folder / f"{name}-{i}")) for i, own in enumerate(own_addresses)]
            pins = {key: members[index].name for key, index in app.pins.items()}
            placement = Placement(1, tuple(members), app.points, pins)
            shared_socket = sockets.listening(shared)
            self._stack.callback(shared_socket.close)
            self._apps[name] = [
                _Shard(self, name, index, settings, placement, self._open(member, shared, folder))
                for index, member in enumerate(members)
            ]
            for shard in self._apps[name]:
                shard.sockets = (shared_socket, *shard.sockets)

    def _open(self, member: Member, shared: str, folder: Path) -> tuple[Any, ...]:
        own = f"unix:{folder / member.name}.own"
        self._resolver_overrides[member.address] = own
        listeners = (sockets.listening(own), sockets.listening(f"unix:{member.socket}"))
        for sock in listeners:
            self._stack.callback(sock.close)
        return listeners

    def environment(self) -> Environment:
        """The clock, timers and dialling of the shards, for `ShardLifecycle`."""
        return Environment(clock=self.clock, alarms=self.clock, dialling=self._dialling)

    # For tests

    def stub(
        self,
        stub: Callable[[grpc.aio.Channel], S],
        *,
        app: str | None = None,
        shard: int | None = None,
        identity: Identity | None = None,
    ) -> S:
        """A generated stub whose calls go to the owners of their keys, or to one shard.

        app: by default the first. identity: of the client, for an app with `auth`; by default it shows no credentials.

        Raises:
            ValueError: both shard and identity are given.
        """
        shards = self._shards(app)
        if identity is not None:
            if shard is not None:
                raise ValueError("stub: expected shard or identity, not both")
            return stub(self._channel_of(shards[0].app, identity))
        if shard is None:
            return stub(self._channels[shards[0].app])
        channel = dial(shards[shard].member.address, dialling=self._dialling)
        self._stack.push_async_callback(channel.close)
        return stub(channel)

    def _channel_of(self, app: str, identity: Identity) -> Channel:
        def assert_identity() -> str:
            return write_assertion(identity, app=TESTS, to=app, key=self._identity_key, now=time())

        listen = self._config.apps[app].listen
        channel = Channel(listen, deadline_s=30.0, name=app, dialling=self._dialling, assert_identity=assert_identity)
        self._stack.push_async_callback(channel.close)
        return channel

    def owner_of(self, key: str, *, app: str | None = None) -> int:
        """The index of the shard that owns a key. key: canonical text."""
        shards = self._shards(app)
        name = shards[0].placement.owner_of(key).name
        return next(shard.index for shard in shards if shard.member.name == name)

    def service(self, kind: type[S], *, shard: int, app: str | None = None) -> S:
        """The service object of one shard, to inspect."""
        servicers = self._shards(app)[shard].lifecycle.parts.services.servicers
        return next(servicer for servicer in servicers if isinstance(servicer, kind))

    async def advance(self, seconds: float) -> None:
        """Move the clock on. Due timers and ticks run in order, with some iterations of the event loop after each."""
        until = self.clock.now() + seconds
        while (now := self.clock.now()) < until:
            self.clock.advance_to(min(now + TICK_S, until))
            for _ in range(ITERATIONS):
                await asyncio.sleep(0)

    async def stats(self, name: str, attributes: Mapping[str, str] | None = None) -> float:
        """The current sum of a counter over all shards, and over all series with these attributes."""
        for shard in self._all():
            if shard.is_up:
                await shard.lifecycle.parts.reporter.report(collect=1)
        return self._totals.sum_of(name, attributes_of(attributes))

    async def kill(self, shard: int, *, app: str | None = None) -> None:
        """End a shard as if its process had died: its state, and the counts since its last tick, are lost."""
        await self._shards(app)[shard].kill()

    async def restart(self, shard: int, *, app: str | None = None) -> None:
        """Start a shard again; kill it first if it is running."""
        target = self._shards(app)[shard]
        if target.is_up:
            await target.kill()
        await target.start()

    @contextmanager
    def stall(self, shard: int, *, app: str | None = None) -> Iterator[None]:
        """Inside the block a shard does not read from its connections: calls wait, as behind a handler that blocks."""
        listener = self._shards(app)[shard].lifecycle.parts.listener
        assert isinstance(listener, NativeListener)
        listener.pause()
        try:
            yield
        finally:
            listener.resume()

    def _shards(self, app: str | None) -> "list[_Shard]":
        name = app or next(iter(self._apps))
        if name not in self._apps:
            raise BadConfig("Cluster", [f"no app is called {name!r}; the apps are {sorted(self._apps)}"])
        return self._apps[name]

    def _all(self) -> "list[_Shard]":
        return [shard for shards in self._apps.values() for shard in shards]

    # For its shards

    def setup_of(self, shard: "_Shard") -> control_pb2.Setup:
        """The message by which a supervisor starts a shard."""
        peers = {name: app.listen for name, app in self._config.apps.items()} | dict(self._config.peers)
        return control_pb2.Setup(
            app=shard.app,
            name=shard.member.name,
            index=shard.index,
            settings=shard.settings.model_dump_json(),
            address=shard.member.address,
            socket=shard.member.socket,
            peers=peers,
            placement=placement_to_proto(shard.placement),
            tracing=self._trace,
            sampler="always_on",
            identity_key=self._identity_key,
            asserts_to=self._config.accepting(shard.app),
        )

    def take(self, shard: "_Shard", report: control_pb2.Report) -> None:
        """Add a shard's report to the sums."""
        source = (("onelane.app", shard.app), ("onelane.shard", shard.member.name))
        self._totals.add(map(point_from_proto, report.points), extra=source)
        self.spans += PackedSpans(report.spans)


@dataclass
class _Shard:
    """One shard of a cluster, and all that is needed to start it again. It is the shard's `Control` line as well."""

    cluster: Cluster
    app: str
    index: int
    settings: App
    placement: Placement
    sockets: tuple[Any, ...]
    is_up: bool = False
    is_killed: bool = False
    """Reports that it still sends are dropped."""

    def __post_init__(self) -> None:
        self.member = self.placement.members[self.index]
        self.lifecycle: ShardLifecycle
        self._placement_task: asyncio.Task[None]

    async def start(self) -> None:
        self.is_killed = False
        copies = [sock.dup() for sock in self.sockets]
        self.lifecycle = ShardLifecycle(self.cluster.setup_of(self), self, copies, self.cluster.environment())
        loop = asyncio.get_running_loop()
        # In a task of its own, whose context keeps the context variables that a start sets.
        await loop.create_task(self.lifecycle.start(whole_process=False))
        await self.lifecycle.parts.services.set_health(serving=True)
        self._placement_task = loop.create_task(self.lifecycle.follow_placements())
        self.is_up = True
        self._tick_later()

    async def kill(self) -> None:
        if not self.is_up:
            return
        self.is_killed = True
        listener = self.lifecycle.parts.listener
        assert isinstance(listener, NativeListener)
        await listener.abort()
        await self.end()

    async def end(self) -> None:
        if self.is_up:
            self.is_up = False
            self._placement_task.cancel()
            await self.lifecycle.stop(stops_services=not self.is_killed)

    def _tick_later(self) -> None:
        self.cluster.clock.call_at(self.cluster.clock.now() + TICK_S, self._tick)

    def _tick(self) -> None:
        if self.is_up:
            self._ticking = asyncio.get_running_loop().create_task(self.lifecycle.tick())
            self._tick_later()

    # onelane.cluster.control.Control

    async def send(self, message: control_pb2.ToSupervisor) -> None:
        if message.WhichOneof("kind") == "report" and not self.is_killed:
            self.cluster.take(self, message.report)

    async def receive(self) -> None:
        """No message ever arrives: there is no supervisor."""

    def close(self) -> None:
        """Nothing to close."""


def _testable(auth: AuthSettings | None) -> AuthSettings | None:
    """As the file has it; but identities of tests count, and tokens only where their keys are at hand."""
    if auth is None:
        return None
    has_keys = auth.jwt is not None and auth.jwt.keys_file is not None and Path(auth.jwt.keys_file).exists()
    return auth.model_copy(update={"apps": {**auth.apps, TESTS: ()}, "jwt": auth.jwt if has_keys else None})


def _config_of(app: str | type | Config | Path, settings: Mapping[str, Any]) -> Config:
    if isinstance(app, Config):
        return app
    if isinstance(app, Path):
        if (folder := str(app.parent.resolve())) not in sys.path:
            sys.path.append(folder)  # As `onelane up` does.
        return config.load(app)
    if isinstance(app, type):
        app = f"{app.__module__}:{app.__qualname__}"
    values = {"services": [app], "listen": "127.0.0.1:50051", **settings}
    return config.parse({"apps": {"app": values}})
