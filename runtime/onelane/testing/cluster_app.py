"""One app of a test cluster: its shards, each with its lives, and the changes of its placement."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from onelane.cluster.control import placement_to_proto
from onelane.config import PORT_STRIDE, App
from onelane.core import addresses
from onelane.core.placement import Member, Placement, succeed
from onelane.core.placement_change import Prepare
from onelane.core.validation import to_json
from onelane.server import sockets
from onelane.server.native_listener import NativeListener
from onelane.shard.handoff import HandoffCarrier
from onelane.shard.lifecycle import ShardLifecycle
from onelane.shard.reporter import TICK_S
from onelane.shard.wiring import Environment
from onelane.testing.changes import ClusterChanges
from onelane.testing.clock import ManualClock
from onelane.v1 import control_pb2

DRAIN_S = 5.0
"""How long the calls of a life that is replaced may go on."""


class Surroundings(Protocol):
    """The cluster, as its apps see it."""

    clock: ManualClock

    def environment(self) -> Environment: ...

    def setup_of(self, app: str) -> control_pb2.Setup: ...

    def dial_instead(self, overrides: Mapping[str, str]) -> None: ...

    def take(self, shard: "ClusterShard", report: control_pb2.Report) -> None: ...


class ClusterApp:
    """See the module. Owned by its cluster."""

    def __init__(self, cluster: Surroundings, name: str, settings: App, folder: Path, shared: Any) -> None:
        """shared: the socket that listens on the app's address."""
        self.cluster = cluster
        self.name = name
        self.settings = settings
        self.shards: list[ClusterShard] = []
        self.changes: ClusterChanges
        self._folder = folder
        self._shared = shared
        self._lives = count(1)

    @property
    def placement(self) -> Placement:
        return self.changes.placement

    def lay_out(self, shards: int) -> dict[str, str]:
        """Make the shards that the app begins with. Returns their addresses, with the sockets to dial instead."""
        self.shards = [self._make_shard(index) for index in range(shards)]
        members = tuple(shard.member for shard in self.shards)
        pins = {key: members[index].name for key, index in self.settings.pins.items()}
        self.changes = ClusterChanges(Placement(1, members, self.settings.points, pins))
        return {shard.member.address: shard.own_target for shard in self.shards}

    async def start(self) -> None:
        for shard in self.shards:
            await shard.start(self.placement)
            self.changes.add(shard)

    async def end(self) -> None:
        for shard in reversed(self.shards):
            await shard.end()

    def close(self) -> None:
        self._shared.close()
        for shard in self.shards:
            shard.close()

    async def scale(self, shards: int) -> None:
        """See `Cluster.scale`."""
        new = [self._make_shard(index) for index in range(len(self.shards), shards)]
        for shard in new:
            self.cluster.dial_instead({shard.member.address: shard.own_target})
            await shard.start(self.placement)
            self.changes.add(shard)
        after = [*self.shards[:shards], *new]
        leaving = self.shards[shards:]
        await self.changes.run(succeed(self.placement, tuple(shard.member for shard in after)))
        self.shards = after
        for shard in leaving:
            await self._retire(shard)

    async def replace(self, index: int) -> None:
        """Start the next life of a shard, have it take over, and end the last one."""
        last = self.shards[index]
        following = self._make_shard(index, beside=last)
        await following.start(self.placement)
        self.changes.add(following)
        members = (following.member if member.name == last.member.name else member for member in self.placement.members)
        await self.changes.run(succeed(self.placement, tuple(members)))
        self.shards[index] = following
        await self._retire(last)

    async def revive(self, index: int) -> None:
        """Start the next life of a shard that has died: with its sockets."""
        shard = self.shards[index]
        dead_life = shard.member.life
        shard.member = replace(shard.member, life=next(self._lives))
        change = self.changes.reborn(dead_life, shard)
        await shard.start(self.placement, change)
        self.changes.add(shard)

    async def _retire(self, shard: "ClusterShard") -> None:
        await shard.drain()
        self.changes.died(shard.member.life)
        await shard.end()
        shard.close()

    def _make_shard(self, index: int, beside: "ClusterShard | None" = None) -> "ClusterShard":
        """beside: its last life, whose own socket it takes."""
        host, port = addresses.split(self.settings.listen)
        name, life = f"{self.name}-{index}", next(self._lives)
        own_target = f"unix:{self._folder / name}.own"
        member = Member(
            name,
            addresses.join(host, (port or 50051) + PORT_STRIDE * (index + 1)),
            str(self._folder / f"{name}.{life}"),
            life,
        )
        own = sockets.listening(own_target) if beside is None else beside.sockets[1].dup()
        listening = (self._shared.dup(), own, sockets.listening(f"unix:{member.socket}"))
        return ClusterShard(self, index, member, own_target, listening)


@dataclass(eq=False)
class ClusterShard:
    """One shard of a cluster, and all that is needed to start it again. It is the shard's `Control` line as well."""

    app: ClusterApp
    index: int
    member: Member
    """Of its life now."""
    own_target: str
    """Of its own socket."""
    sockets: tuple[Any, ...]
    is_up: bool = False
    is_killed: bool = False
    """Reports that it still sends are dropped."""

    def __post_init__(self) -> None:
        self.lifecycle: ShardLifecycle
        self._placement_task: asyncio.Task[None]

    @property
    def carrier(self) -> HandoffCarrier:
        return self.lifecycle.parts.handoff

    def place(self, placement: Placement) -> None:
        self.lifecycle.parts.membership.offer(placement)

    async def start(self, placement: Placement, change: Prepare | None = None) -> None:
        """change: that it starts in the middle of."""
        self.is_killed = False
        copies = [sock.dup() for sock in self.sockets]
        setup, environment = self._setup(placement, change), self.app.cluster.environment()
        self.lifecycle = ShardLifecycle(setup, self, copies, environment)
        loop = asyncio.get_running_loop()
        # In a task of its own, whose context keeps the context variables that a start sets.
        await loop.create_task(self.lifecycle.start(whole_process=False))
        await self.lifecycle.tell_health(placement)
        self._placement_task = loop.create_task(self.lifecycle.follow_placements())
        self.is_up = True
        self._tick_later()

    def _setup(self, placement: Placement, change: Prepare | None) -> control_pb2.Setup:
        setup = self.app.cluster.setup_of(self.app.name)
        setup.MergeFrom(
            control_pb2.Setup(
                name=self.member.name,
                index=self.index,
                settings=to_json(self.app.settings),
                address=self.member.address,
                socket=self.member.socket,
                placement=placement_to_proto(placement),
                life=self.member.life,
            )
        )
        if change is not None:
            before, after = placement_to_proto(change.before), placement_to_proto(change.after)
            setup.change.MergeFrom(control_pb2.Prepare(before=before, after=after, gone=change.dead))
        return setup

    async def drain(self) -> None:
        """Let its calls end, and its clients go elsewhere."""
        if self.is_up:
            await self.lifecycle.drain(DRAIN_S)

    async def kill(self) -> None:
        if not self.is_up:
            return
        self.is_killed = True
        listener = self.lifecycle.parts.listener
        assert isinstance(listener, NativeListener)
        await listener.abort()
        await self.end()
        self.app.changes.died(self.member.life)

    async def end(self) -> None:
        if self.is_up:
            self.is_up = False
            self._placement_task.cancel()
            await self.lifecycle.stop(stops_services=not self.is_killed)

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()

    def _tick_later(self) -> None:
        clock = self.app.cluster.clock
        clock.call_at(clock.now() + TICK_S, self._tick)

    def _tick(self) -> None:
        if self.is_up:
            self._ticking = asyncio.get_running_loop().create_task(self.lifecycle.tick())
            self._tick_later()

    # onelane.cluster.control.Control

    async def send(self, message: control_pb2.ToSupervisor) -> None:
        if self.is_killed:
            return
        match message.WhichOneof("kind"):
            case "report":
                self.app.cluster.take(self, message.report)
            case "departed":
                self.app.changes.departed(self.member.life)
            case "arrived":
                self.app.changes.arrived(self.member.life)

    async def receive(self) -> None:
        """No message ever arrives: there is no supervisor."""
