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
from dataclasses import replace
from pathlib import Path
from time import time
from typing import Any, TypeVar

import grpc.aio

from onelane import config
from onelane.client.channel import dial
from onelane.client.options import APP_DIALLING
from onelane.client.ring_channel import Channel
from onelane.config import Config
from onelane.core.auth_settings import AuthSettings
from onelane.core.identity import Identity, write_assertion
from onelane.core.validation import changed
from onelane.errors import BadConfig
from onelane.server import sockets
from onelane.server.native_listener import NativeListener
from onelane.shard.reporter import TICK_S
from onelane.shard.wiring import Environment
from onelane.state.memory_store import MemoryStore
from onelane.state.store import Store, StoreOptions
from onelane.telemetry.codec import point_from_proto
from onelane.telemetry.collector.totals import Totals
from onelane.telemetry.spans import PackedSpans, SpanRecord
from onelane.telemetry.stats import attributes_of
from onelane.testing.clock import ManualClock
from onelane.testing.cluster_app import ClusterApp, ClusterShard
from onelane.v1 import control_pb2

S = TypeVar("S")
TESTS = "onelane-testing"
"""The app whose assertions of identity are those of tests."""
NEVER_LATE_S = 60.0
"""`max_late_s` where the settings have its default."""
ITERATIONS = 20
"""Iterations of the event loop after each step of `advance`, for the tasks that the step has started."""


class Cluster:
    """One or several apps in the process and event loop of a test, without ports. An async context manager; owned by
    the loop that entered it."""

    def __init__(
        self,
        app: str | type | Config | Path,
        *,
        shards: int = 2,
        settings: Mapping[str, Any] | None = None,
        trace: bool = False,
        store: Callable[[StoreOptions], Store] = MemoryStore,
        strict: bool = False,
    ) -> None:
        """app: a servicer class or its name "package.module:Class"; or a configuration, or the path of its file.

        shards: of each app. settings: of `[apps.NAME]`, for a servicer class. trace: record the spans of every call.
        store: makes the store of durable state of each shard; by default in memory, kept over `kill` and `restart`.
        strict: a service that touches a keyed entry outside of the turn of its key gets `NotItsKey`, as by the app's
        setting `strict`; the code of the test may look at every entry.

        No shard refuses calls because it runs late, unless the settings give a `max_late_s` other than the default: all
        shards wait for one loop here, and the test's machine may be busy.

        Raises:
            BadConfig: the file, or a setting, is not valid.
        """
        self.clock = ManualClock(1_000_000.0)
        """Of timers, ticks and spans; it stands still until `advance`."""
        self.spans: list[SpanRecord] = []
        """The spans so far; new ones arrive with each tick (`advance`) and with `stats`."""
        self._config = _config_of(app, settings or {})
        self._count = shards
        self._trace = trace
        self._make_store = store
        self._is_strict = strict
        self._folder = Path()
        self._identity_key = secrets.token_bytes(32)
        self._totals = Totals()
        self._apps: dict[str, ClusterApp] = {}
        self._channels: dict[str, Channel] = {}
        self._stack = AsyncExitStack()
        self._resolver_overrides: dict[str, str] = {}
        self._dialling = replace(APP_DIALLING, resolver_overrides=self._resolver_overrides)

    async def __aenter__(self) -> "Cluster":
        async with self._stack:
            folder = Path(tempfile.mkdtemp(prefix="onelane-"))
            self._folder = folder
            self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
            self._lay_out(folder)
            # In reverse order: callers come first in a file, and the apps that they call must listen before they start.
            for app in reversed(self._apps.values()):
                self._stack.push_async_callback(app.end)
                await app.start()
            for name, settings in self._config.apps.items():
                channel = Channel(settings.listen, deadline_s=30.0, name=name, dialling=self._dialling)
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
            settings = changed(
                app,
                shards=self._count,
                auth=_testable(app.auth),
                strict=self._is_strict or app.strict,
                max_late_s=NEVER_LATE_S if app.max_late_s == config.App.max_late_s else app.max_late_s,
            )
            shared = f"unix:{folder / name}"
            self._resolver_overrides[app.listen] = shared
            cluster_app = ClusterApp(self, name, settings, folder, sockets.listening(shared))
            self._stack.callback(cluster_app.close)
            self._resolver_overrides.update(cluster_app.lay_out(self._count))
            self._apps[name] = cluster_app

    def environment(self) -> Environment:
        """The clock, timers and dialling of the shards, for `ShardLifecycle`."""
        return Environment(
            clock=self.clock, alarms=self.clock, dialling=self._dialling, make_store=self._make_store_in_folder
        )

    def _make_store_in_folder(self, options: StoreOptions) -> Store:
        return self._make_store(replace(options, folder=self._folder / "state"))

    # For tests

    def stub(
        self,
        stub: Callable[[grpc.aio.Channel], S],
        *,
        app: str | None = None,
        shard: int | None = None,
        identity: Identity | None = None,
        reopen: bool | None = None,
        marks: bool = False,
    ) -> S:
        """A generated stub whose calls go to the owners of their keys, or to one shard.

        app: by default the first. identity: of the client, for an app with `auth`; by default it shows no credentials.

        reopen, marks: of server streams whose key moves, see `Channel.with_streams`. One to a shard follows no key.

        Raises:
            ValueError: shard is given, and identity, reopen or marks as well.
        """
        name, shards = self._app(app).name, self._shards(app)
        if identity is not None:
            if shard is not None:
                raise ValueError("stub: expected shard or identity, not both")
            return stub(self._channel_of(name, identity).with_streams(reopen=reopen, marks=marks))
        if shard is None:
            return stub(self._channels[name].with_streams(reopen=reopen, marks=marks))
        if reopen or marks:
            raise ValueError("stub: a stub of one shard follows no key, so expected neither reopen nor marks")
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
        owner = self._app(app).placement.owner_of(key)
        return next(shard.index for shard in self._shards(app) if shard.member.name == owner.name)

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
        """End a shard as if its process had died, and start no other: its state, and the counts since its last tick,
        are lost."""
        await self._shards(app)[shard].kill()

    async def crash(self, shard: int, *, app: str | None = None) -> None:
        """End a shard as if its process had died, and start its next process."""
        await self._shards(app)[shard].kill()
        await self._app(app).revive(shard)

    async def restart(self, shard: int, *, app: str | None = None) -> None:
        """As `onelane restart`, of one shard: its next process starts first, and the state of its keys moves there. A
        shard that was killed is started again."""
        if self._shards(app)[shard].is_up:
            await self._app(app).replace(shard)
        else:
            await self._app(app).revive(shard)

    async def scale(self, shards: int, *, app: str | None = None) -> None:
        """As `onelane scale`: add shards, or take the last ones away; the state of keys moves to their new owners.

        Raises:
            ValueError: fewer than one shard.
        """
        if shards < 1:
            raise ValueError(f"scale: expected at least one shard, got {shards}")
        await self._app(app).scale(shards)

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

    def _app(self, name: str | None) -> ClusterApp:
        name = name or next(iter(self._apps))
        if name not in self._apps:
            raise BadConfig("Cluster", [f"no app is called {name!r}; the apps are {sorted(self._apps)}"])
        return self._apps[name]

    def _shards(self, app: str | None) -> list[ClusterShard]:
        return self._app(app).shards

    def _all(self) -> list[ClusterShard]:
        return [shard for app in self._apps.values() for shard in app.shards]

    # For its shards

    def setup_of(self, app: str) -> control_pb2.Setup:
        """What is the same for all shards of an app in the message by which a supervisor starts one."""
        peers = {name: settings.listen for name, settings in self._config.apps.items()} | dict(self._config.peers)
        return control_pb2.Setup(
            app=app,
            peers=peers,
            tracing=self._trace,
            sampler="always_on",
            identity_key=self._identity_key,
            asserts_to=self._config.accepting(app),
        )

    def dial_instead(self, overrides: Mapping[str, str]) -> None:
        """Addresses of shards → the sockets that are dialled instead."""
        self._resolver_overrides.update(overrides)

    def take(self, shard: ClusterShard, report: control_pb2.Report) -> None:
        """Add a shard's report to the sums."""
        source = (("onelane.app", shard.app.name), ("onelane.shard", shard.member.name))
        self._totals.add(map(point_from_proto, report.points), extra=source)
        self.spans += [span for packed in report.spans for span in PackedSpans(packed)]


def _testable(auth: AuthSettings | None) -> AuthSettings | None:
    """As the file has it; but identities of tests count, and tokens only where their keys are at hand."""
    if auth is None:
        return None
    has_keys = auth.jwt is not None and auth.jwt.keys_file is not None and Path(auth.jwt.keys_file).exists()
    return changed(auth, apps={**auth.apps, TESTS: ()}, jwt=auth.jwt if has_keys else None)


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
