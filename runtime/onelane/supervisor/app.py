"""Keeps the shards of one app alive: starts them, restarts those that die, drains them, restarts them one by one."""

import json
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import anyio

from onelane.cluster.control import placement_to_proto
from onelane.config import App
from onelane.core.backoff import backoff_s
from onelane.core.placement import Member, Placement
from onelane.errors import OnelaneError
from onelane.supervisor.launcher import Launcher, Running
from onelane.telemetry.codec import stall_from_proto
from onelane.telemetry.collector.collector import RESTARTS, Gathering
from onelane.telemetry.collector.sequence import Received
from onelane.telemetry.stalls import Stall
from onelane.telemetry.stats import Attributes
from onelane.v1 import control_pb2

log = logging.getLogger("onelane.supervisor")
STOP_S = 5.0
"""How long a shard may take to end after its calls have."""
DRAIN_MARGIN_S = 2.5
"""What a shard may take beyond its grace to say that it has drained."""
STEADY_S = 10.0
"""A shard that lived this long is restarted at once when it dies; one that dies young waits longer each time."""
COMMIT_S = 2.0
"""How long a shard may take to use settings that it has checked; then it is said by `status` what it has."""
LAST_STALLS = 5
"""Stalls of a shard that are kept for its status."""


@dataclass(frozen=True, slots=True)
class Exporting:
    """What shards are to record for those who look."""

    traces: bool = True
    sampler: str = ""
    """As `OTEL_TRACES_SAMPLER` names it; "" for the standard's default."""
    sampler_arg: str = ""
    logs: bool = False


@dataclass(frozen=True)
class Surroundings:
    """What a keeper is given by its supervisor."""

    launcher: Launcher
    app_dir: str
    exporting: Exporting
    gathering: Gathering
    peers: dict[str, str]
    """App name → host:port, for stubs."""
    answer_status: Callable[[Running, int], object]
    """Answers, later, a shard that asked for the status of all."""


class ShardFailed(OnelaneError):
    """A shard could not start; the app stops. Carries the shard's own words."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"shard {name} failed to start: {reason.rstrip()}")


@dataclass
class ShardState:
    """One shard as its supervisor sees it."""

    member: Member
    index: int
    state: str = "starting"
    """starting, ready, draining, drained, restarting, stopped."""
    pid: int = 0
    restarts: int = 0
    keyed: dict[str, int] = field(default_factory=dict)
    stalls: deque[Stall] = field(default_factory=lambda: deque(maxlen=LAST_STALLS))
    """The last ones, over restarts too."""
    sockets: Sequence[socket.socket] = ()
    """What it listens on, held here, so that who connects while it restarts waits; none where its listener binds."""
    running: Running | None = None
    born: bool = False
    """It has been ready once: from then on a start that fails is tried again."""
    recycling: bool = False
    """It ends because we asked it to, and is started again at once."""
    ready: anyio.Event = field(default_factory=anyio.Event)
    drained: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)
    received: Received = field(default_factory=Received)
    """Its reports, of this life."""
    generation: int = 0
    """Of the services' settings that it has."""
    answers: dict[int, str] = field(default_factory=dict)
    """What it has against a generation of settings; "" where they fit."""
    heard: anyio.Event = field(default_factory=anyio.Event)
    """It has said something about settings; a new one each time."""
    collected: dict[int, anyio.Event] = field(default_factory=dict)

    def hear(self) -> None:
        """Wake who waits for what it says."""
        heard, self.heard = self.heard, anyio.Event()
        heard.set()


class Keeper:
    """The shards of one app. Owned by its supervisor."""

    def __init__(self, name: str, settings: App, placement: Placement, around: Surroundings) -> None:
        self.name = name
        self.settings = settings
        self.placement = placement
        self._around = around
        self.shards = [ShardState(member, index) for index, member in enumerate(placement.members)]
        self.generation = self._proposals = 1
        """Of the services' settings."""
        self._stop = anyio.Event()
        self._rng = Random()

    async def keep(self, shard: ShardState) -> None:
        """Run one shard, and again each time it dies, until the app stops.

        Raises:
            ShardFailed: its first start failed.
        """
        failures = 0
        while not self._stop.is_set():
            shard.running = await self._around.launcher.launch(shard.sockets)
            shard.received = Received()
            shard.drained, shard.ended = anyio.Event(), anyio.Event()
            began = time.monotonic()
            try:
                how = await self._accompany(shard, shard.running)
            finally:
                shard.running.kill()
                shard.drained.set()
                shard.ended.set()
            self._around.gathering.ended(self.source(shard), shard.received)
            if self._stop.is_set():
                break
            if shard.recycling:
                shard.recycling, shard.state = False, "starting"
                continue
            shard.state = "restarting"
            shard.restarts += 1
            self._around.gathering.count(RESTARTS, 1, self.source(shard))
            failures = 0 if time.monotonic() - began > STEADY_S else failures + 1
            pause = backoff_s(failures - 1, base_s=0.05, cap_s=5.0, rng=self._rng) if failures > 1 else 0.0
            log.warning("shard.died shard=%s how=%s restart_in_s=%.3f", shard.member.name, how, pause)
            with anyio.move_on_after(pause):
                await self._stop.wait()
        shard.state, shard.pid = "stopped", 0
        # Whoever waits for the start need not wait any more.
        shard.ready.set()

    async def _accompany(self, shard: ShardState, running: Running) -> str:
        """Talk with one running shard until it ends; how it ended."""
        await running.control.send(control_pb2.ToShard(setup=self._setup(shard)))
        while (message := await running.control.receive()) is not None:
            match message.WhichOneof("kind"):
                case "ready":
                    shard.pid, shard.state, shard.born = message.ready.pid, "ready", True
                    shard.ready.set()
                    if shard.generation != self.generation:
                        # It was starting when new ones were decided.
                        await self._tell(shard, control_pb2.ToShard(commit=self._proposal(self.settings.config)))
                case "failed":
                    if not shard.born:
                        raise ShardFailed(shard.member.name, message.failed.reason)
                    log.error("shard.restart_failed shard=%s reason=%s", shard.member.name, message.failed.reason)
                case "report":
                    self._add(shard, message.report)
                case "drained":
                    shard.drained.set()
                case "proposed":
                    shard.answers[message.proposed.generation] = message.proposed.fault
                    shard.hear()
                case "committed":
                    shard.generation = message.committed
                    shard.hear()
                case "ask_status":
                    # We are reading that shard's messages here, so it must not wait for its own report.
                    self._around.answer_status(running, message.ask_status)
        running.control.close()
        how = "did not end"
        with anyio.move_on_after(STOP_S):
            how = await running.wait()
        if not shard.born and not self._stop.is_set():
            raise ShardFailed(shard.member.name, how)
        return how

    def _add(self, shard: ShardState, report: control_pb2.Report) -> None:
        if self._around.gathering.report(self.source(shard), shard.received, report):
            shard.keyed = dict(report.keyed)
            shard.stalls += map(stall_from_proto, report.stalls)
        if report.collect in shard.collected:
            shard.collected[report.collect].set()

    def source(self, shard: ShardState) -> Attributes:
        return (("onelane.app", self.name), ("onelane.shard", shard.member.name))

    async def propose(self, config: Mapping[str, Any], answer_s: float) -> list[str]:
        """Ask every shard that runs whether new settings fit; what is against it. Changes nothing."""
        self._proposals += 1
        number = self._proposals
        asked = [shard for shard in self.shards if shard.state == "ready" and shard.running is not None]
        for shard in asked:
            message = self._proposal(config, number)
            await self._tell(shard, control_pb2.ToShard(propose=message))
        with anyio.move_on_after(answer_s):
            for shard in asked:
                while number not in shard.answers and shard.state == "ready":
                    await shard.heard.wait()
        # One that has died meanwhile starts with what is decided now.
        return [
            fault
            for shard in asked
            if shard.state == "ready"
            and (fault := shard.answers.pop(number, f"shard {shard.member.name} has not answered in {answer_s:g} s"))
        ]

    async def commit(self, config: Mapping[str, Any]) -> None:
        """Give every shard these settings; those that start later begin with them."""
        self.generation = self._proposals
        self.settings = self.settings.model_copy(update={"config": config})
        ready = [shard for shard in self.shards if shard.state == "ready"]
        for shard in ready:
            await self._tell(shard, control_pb2.ToShard(commit=self._proposal(config)))
        with anyio.move_on_after(COMMIT_S):
            for shard in ready:
                while shard.generation != self.generation and shard.state == "ready":
                    await shard.heard.wait()

    def _proposal(self, config: Mapping[str, Any], generation: int | None = None) -> control_pb2.Settings:
        text = json.dumps(config, default=str)
        return control_pb2.Settings(generation=generation or self.generation, config=text)

    def _setup(self, shard: ShardState) -> control_pb2.Setup:
        shard.generation = self.generation
        return control_pb2.Setup(
            app=self.name,
            name=shard.member.name,
            index=shard.index,
            settings=self.settings.model_dump_json(),
            address=shard.member.address,
            socket=shard.member.socket,
            peers=self._around.peers,
            placement=placement_to_proto(self.placement),
            tracing=self._around.exporting.traces,
            sampler=self._around.exporting.sampler,
            sampler_arg=self._around.exporting.sampler_arg,
            logs=self._around.exporting.logs,
            app_dir=self._around.app_dir,
            generation=self.generation,
        )

    async def drain(self) -> None:
        """Let what is under way finish, within the app's bound, then end every shard."""
        self._stop.set()
        ready = [shard for shard in self.shards if shard.state == "ready"]
        for shard in ready:
            await self._ask_to_drain(shard)
        with anyio.move_on_after(self.settings.drain_s + DRAIN_MARGIN_S):
            for shard in ready:
                await shard.drained.wait()
        for shard in self.shards:
            # Nobody will serve those who connect from now on: let them know at once.
            for sock in shard.sockets:
                sock.close()
        # Only now: until the last one has drained, it may still forward to the others.
        async with anyio.create_task_group() as tasks:
            for shard in self.shards:
                tasks.start_soon(self._end, shard)

    async def recycle(self) -> None:
        """Restart every shard with fresh code, one after another, each after its calls have finished."""
        for shard in self.shards:
            if shard.state in ("ready", "drained") and not self._stop.is_set():
                await self.restart_one(shard)

    async def drain_one(self, shard: ShardState) -> None:
        """Let a shard finish what it has; it takes nothing new until it is restarted."""
        await self._ask_to_drain(shard)
        with anyio.move_on_after(self.settings.drain_s + DRAIN_MARGIN_S):
            await shard.drained.wait()
        if shard.state == "draining":
            shard.state = "drained"

    async def restart_one(self, shard: ShardState) -> None:
        """Restart a shard, after its calls have finished."""
        shard.ready = anyio.Event()
        if shard.state in ("ready", "draining"):
            await self.drain_one(shard)
        shard.recycling, shard.state = True, "restarting"
        await self._end(shard)
        await shard.ready.wait()

    def kill(self) -> None:
        """End every shard at once."""
        self._stop.set()
        for shard in self.shards:
            if shard.running is not None:
                shard.running.kill()

    async def _ask_to_drain(self, shard: ShardState) -> None:
        shard.state = "draining"
        await self._tell(shard, control_pb2.ToShard(drain=control_pb2.Drain(grace_s=self.settings.drain_s)))

    async def _end(self, shard: ShardState) -> None:
        """Tell one shard to end; one that does not is killed."""
        if shard.running is None:
            return
        await self._tell(shard, control_pb2.ToShard(stop=control_pb2.Stop()))
        with anyio.move_on_after(STOP_S) as waiting:
            await shard.ended.wait()
        if waiting.cancelled_caught:
            log.error("shard.killed shard=%s it did not end within %.0f s", shard.member.name, STOP_S)
            shard.running.kill()

    async def _tell(self, shard: ShardState, message: control_pb2.ToShard) -> None:
        if shard.running is not None:
            await shard.running.control.send(message)
