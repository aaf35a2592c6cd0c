"""Starts, watches, restarts and drains the shards of every app of a file; adds their statistics up.

Promises: it loads no grpcio; a shard that dies is restarted with back-off and the others are left alone; what the
shards counted is what is exported, and a scrape asks every shard first, so the sum is exact.
"""

import itertools
import json
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread

from onelane.config import PORT_STRIDE, App, Config
from onelane.core import addresses
from onelane.core.placement import Member, Placement
from onelane.errors import BadConfig, first_of
from onelane.server import sockets
from onelane.supervisor.app import Exporting, Keeper, ShardState, Surroundings
from onelane.supervisor.launcher import Launcher, Running
from onelane.supervisor.reload import Reloaded, Reloading
from onelane.telemetry.collector.collector import Gathering
from onelane.telemetry.sinks import Sink
from onelane.telemetry.sinks.prometheus import PrometheusSink
from onelane.v1 import control_pb2

log = logging.getLogger("onelane.supervisor")
COLLECT_S = 0.5
"""How long a scrape waits for shards that do not answer."""
CLOSE_S = 3.0
"""How long telemetry may take to leave at the end."""


class Supervisor:
    """All apps of one file. Made once; `run` is its whole life."""

    def __init__(
        self,
        config: Config,
        launcher: Launcher,
        *,
        app_dir: str,
        sinks: Sequence[Sink],
        exporting: Exporting,
        read: Callable[[], Config] | None = None,
    ) -> None:
        """read: reads the file again, for `reload`."""
        self.config = config
        self.prometheus = PrometheusSink(os.environ)
        self.gathering = Gathering(config, [self.prometheus, *sinks], logs_too=exporting.logs)
        self.apps: list[Keeper] = []
        self._around = Surroundings(
            launcher=launcher,
            app_dir=app_dir,
            exporting=exporting,
            gathering=self.gathering,
            peers=dict(config.peers),
            answer_status=lambda running, number: self.tasks.start_soon(self._answer_status, running, number),
        )
        self._reloading = Reloading(self.apps, config, read or (lambda: config))
        self.tasks: anyio.abc.TaskGroup
        self.stop_asked = anyio.Event()
        self._numbers = itertools.count(1)

    async def run(self, *, on_ready: Callable[[], Any] = lambda: None) -> None:
        """Start every shard, call `on_ready`, serve until `stop_asked`, drain, end.

        Raises:
            PortTaken, BadConfig: before anything was started.
            ShardFailed: a shard could not start; the others have been ended.
        """
        async with AsyncExitStack() as stack:
            folder = Path(tempfile.mkdtemp(prefix="onelane-", dir=os.environ.get("RUNTIME_DIRECTORY") or None))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            held = self._claim(folder, stack)
            try:
                await self._serve(held, on_ready)
            except BaseExceptionGroup as group:
                raise first_of(group) from None
            finally:
                with anyio.CancelScope(shield=True):
                    await self._flush()

    def _claim(self, folder: Path, stack: AsyncExitStack) -> list[socket.socket]:
        """Lay out every app's addresses and make sure that nobody else has them. Returns what to let go of."""
        free: list[socket.socket] = []
        epoch = int(time.time())
        for name, app in self.config.apps.items():
            listen, held = sockets.claim(app.listen, shared=True)
            stack.callback(held.close)
            settings = app.model_copy(update={"listen": listen})
            members, own = [], []
            for index in range(app.shard_count):
                address, sock = sockets.claim(_own_address(app, listen, index), shared=False)
                own.append(sock)
                stack.callback(sock.close)
                known_as = addresses.join(app.advertise or addresses.split(address)[0], addresses.split(address)[1])
                members.append(Member(f"{name}-{index}", known_as, str(folder / f"{name}-{index}.sock")))
            pins = {key: members[index].name for key, index in app.pins.items()}
            placement = Placement(epoch, tuple(members), app.points, pins)
            keeper = Keeper(name, settings, placement, self._around)
            self.apps.append(keeper)
            if app.adopts_sockets:
                self._hold(keeper, own, stack)
            else:
                free += own
        self._around.peers.update({app.name: addresses.reachable(app.settings.listen) for app in self.apps})
        return free

    def _hold(self, app: Keeper, own: Sequence[socket.socket], stack: AsyncExitStack) -> None:
        """Listen on behalf of every shard of `app`."""
        for shard, mine in zip(app.shards, own, strict=True):
            mine.listen(sockets.BACKLOG)
            mine.setblocking(False)
            shared = sockets.listening(app.settings.listen, shared=True)
            siblings = sockets.listening(f"unix:{shard.member.socket}")
            shard.sockets = (shared, mine, siblings)
            for sock in (shared, siblings):
                stack.callback(sock.close)

    async def _serve(self, held: list[socket.socket], on_ready: Callable[[], Any]) -> None:
        for sock in held:
            sock.close()
        async with anyio.create_task_group() as self.tasks:
            async with anyio.create_task_group() as keepers:
                self.tasks.start_soon(self._drain_when_asked)
                # Last to first, so that those who are called listen before their callers start.
                for app in reversed(self.apps):
                    for shard in app.shards:
                        keepers.start_soon(app.keep, shard)
                    for shard in app.shards:
                        await shard.ready.wait()
                self.tasks.start_soon(self._feed_sinks)
                if not self.stop_asked.is_set():
                    on_ready()
            self.tasks.cancel_scope.cancel()

    async def _drain_when_asked(self) -> None:
        await self.stop_asked.wait()
        # In the order of the file, callers first: what they have under way may still call the later ones.
        for app in self.apps:
            await app.drain()

    async def reload(self) -> Reloaded:
        """Read the file again, and give the services the settings that it has for them."""
        return await self._reloading.reload()

    async def recycle(self, name: str | None = None) -> None:
        """Restart every shard of every app, or of one, one after another."""
        for app in self.apps:
            if name in (None, app.name):
                await app.recycle()
        log.info("supervisor.recycled app=%s", name or "all")

    def begin(self, what: str, app: str, index: int) -> bool:
        """Begin to `drain` or `restart` one shard; False where its state does not allow that."""
        keeper = next(keeper for keeper in self.apps if keeper.name == app)
        shard = keeper.shards[index]
        if self.stop_asked.is_set() or shard.state not in (("ready",) if what == "drain" else ("ready", "drained")):
            return False
        log.info("supervisor.%s shard=%s it was asked for on the page", what, shard.member.name)
        # Said now, not when the task begins: who asks next is to see it.
        shard.state = "draining" if shard.state == "ready" else "restarting"
        self.tasks.start_soon(keeper.drain_one if what == "drain" else keeper.restart_one, shard)
        return True

    async def _feed_sinks(self) -> None:
        while True:
            await anyio.sleep(1.0)
            self.gathering.step()

    async def _flush(self) -> None:
        self.gathering.feed()
        for sink in self.gathering.sinks:
            await anyio.to_thread.run_sync(sink.close, CLOSE_S)

    def kill(self) -> None:
        """End every shard at once."""
        for app in self.apps:
            app.kill()

    async def _answer_status(self, running: Running, number: int) -> None:
        await self.collect()
        answer = control_pb2.StatusAnswer(number=number, json=json.dumps(self.status(details=True)))
        await running.control.send(control_pb2.ToShard(status=answer))

    async def collect(self) -> None:
        """Have every ready shard report now; a shard that does not answer is waited for briefly."""
        number = next(self._numbers)
        ready = [
            (a, s) for a in self.apps for s in a.shards if s.state in ("ready", "draining", "drained") and s.running
        ]
        for _, shard in ready:
            shard.collected[number] = anyio.Event()
            assert shard.running is not None
            await shard.running.control.send(control_pb2.ToShard(collect=number))
        with anyio.move_on_after(COLLECT_S):
            for _, shard in ready:
                await shard.collected[number].wait()
        for _, shard in ready:
            del shard.collected[number]

    async def metrics(self, accept: str = "", *, sums: bool = False) -> tuple[bytes, str]:
        """Prometheus text or OpenMetrics, as an Accept header asks, exact as of now; and its content type.

        sums: of each app on this machine, whatever `per_shard_series` says.
        """
        await self.collect()
        self.gathering.feed()
        if not sums:
            return self.prometheus.render(accept)
        added_up = PrometheusSink(os.environ)
        added_up.points(self.gathering.points(sums=True))
        return added_up.render(accept)

    def status(self, *, details: bool = False) -> dict[str, Any]:
        """Every app with its shards. details: also how many keys each keyed dict holds."""
        return {"apps": {app.name: self._status_of(app, details=details) for app in self.apps}}

    def _status_of(self, app: Keeper, *, details: bool) -> dict[str, Any]:
        return {
            "listen": app.settings.listen,
            "epoch": app.placement.epoch,
            "service_config": app.placement.service_config(),
            "shards": [self._shard_status(app, shard, details=details) for shard in app.shards],
        }

    def _shard_status(self, app: Keeper, shard: ShardState, *, details: bool) -> dict[str, Any]:
        source = app.source(shard)
        row = {
            "name": shard.member.name,
            "index": shard.index,
            "pid": shard.pid,
            "address": shard.member.address,
            "state": shard.state,
            "restarts": shard.restarts,
            "config": shard.generation,
            "calls": int(self.gathering.totals.sum_of("onelane.calls", source)),
            "forwarded": int(self.gathering.totals.sum_of("onelane.forwards", source)),
            "stalls": int(self.gathering.totals.sum_of("onelane.stalls", source)),
            "last_stalls": [asdict(stall) for stall in shard.stalls],
        }
        return row | {"keyed": shard.keyed} if details else row


def _own_address(app: App, listen: str, index: int) -> str:
    host, port = addresses.split(listen)
    if app.own_port is not None:
        return addresses.join(host, app.own_port + index)
    if app.listen.endswith(":0"):
        return addresses.join(host, 0)
    own = port + PORT_STRIDE * (index + 1)
    if own > 65535:
        raise BadConfig("configuration", [f"shard {index} would have port {own}, past 65535: set own_port"])
    return addresses.join(host, own)
