"""An app whose placements the coordinator of a cluster decides on: see `placing.Placing`.

What its supervisor wants, and what its lives report, goes to `placed_lives`; what they are told comes from there. In an
entry each life has the address of its link; a shard is told the paths of its siblings on this machine in their place.
"""

import logging
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import anyio

from onelane.cluster.control import member_to_proto, placement_to_proto
from onelane.cluster.following import Beginning, Message
from onelane.cluster.machines import AppPart, ClusterView, MachineRecord
from onelane.cluster.overview import what_changes
from onelane.cluster.placements import AppEntry
from onelane.core.machine_links import LinkAddress, MachineLinks
from onelane.core.placement import Member, Placement
from onelane.core.placement_change import Gone, Prepare, Reborn
from onelane.server.sockets import listening
from onelane.server.unix_sockets import ListeningPath
from onelane.supervisor.change_trace import ChangeTrace
from onelane.supervisor.cluster_pins import ClusterPins
from onelane.supervisor.late_lives import BETWEEN_LOOKS_S, LateLives
from onelane.supervisor.link_socket import listening_at
from onelane.supervisor.placed_lives import PlacedLives
from onelane.supervisor.placing import CHANGE_MARGIN_S, ChangeElsewhere, ChangePlan, PlacedApp, Start
from onelane.supervisor.shard_state import ShardEvent, ShardState
from onelane.supervisor.supervised_shard import Incarnation, SupervisedShard
from onelane.supervisor.target import NotChanged
from onelane.v1 import control_pb2

log = logging.getLogger("onelane.supervisor")
FIRST_STAND_IN = 1_000_000
"""Indices of stand-ins are above those of all shards of the app."""
STAND_IN_AGAIN_S = 0.5
"""Before a stand-in is started anew that did not start."""


class PlacingMachine(Protocol):
    """This machine in its cluster: `cluster_member.ClusterMember`."""

    links: MachineLinks
    advertise: str
    link_ports: Sequence[int]

    @property
    def name(self) -> str: ...

    @property
    def view(self) -> ClusterView | None: ...

    @property
    def changed(self) -> anyio.Event: ...

    def announce(self, *, within_s: float = 0.0) -> None: ...

    async def next_life(self) -> int: ...

    async def identity_key(self) -> bytes: ...

    async def put_pins(self, app: str, pins: Mapping[str, str]) -> None: ...


@dataclass
class _Move:
    """See `placing.RunningMove`."""

    placed: PlacedLives
    began_at: float = field(default_factory=time.monotonic)
    progress: dict[int, control_pb2.HandoffProgress] = field(default_factory=dict)
    """Of the lives of this machine."""
    epoch: int = 0
    """That it leads to, where it has begun by the entry."""

    @property
    def waits_for(self) -> frozenset[int]:
        return self.placed.waits_for

    @property
    def names(self) -> Mapping[int, str]:
        return {} if self.placed.entry is None else self.placed.entry.names


class ClusterPlacing:
    """See the module. Owned by the app's supervisor."""

    def __init__(self, app: PlacedApp, cluster: PlacingMachine) -> None:
        self._app = app
        self._cluster = cluster
        self._placed = PlacedLives(app.name, cluster.name, cluster.announce)
        self._owners: dict[str, SupervisedShard] = {}
        """Name → the shard whose lives are to own its keys; of two records of one name, as one replaces the other."""
        self._running: _Move | None = None
        self._elsewhere: _Move | None = None
        """Under way by the entry, whichever machine wants it."""
        self._stand_ins: set[str] = set()
        """Names of shards of other machines in whose place lives run here, or are about to."""
        self._late = LateLives(app.settings.drain_s + CHANGE_MARGIN_S)
        self._followed = anyio.Event()
        """Set when another view has been followed; another event follows it."""

    # For the cluster

    @property
    def name(self) -> str:
        return self._app.name

    @property
    def first_placement(self) -> Placement:
        return self._app.placement

    @property
    def lives(self) -> tuple[Member, ...]:
        return self._placed.lives

    @property
    def part(self) -> AppPart:
        return self._placed.part

    async def follow(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._end_late_lives)
            await self._follow()

    async def _follow(self) -> None:
        while True:
            changed, view = self._cluster.changed, self._cluster.view
            if view is not None:
                await self._placed.follow(view)
                if (entry := self._placed.entry) is not None:
                    self._app.placement = self._told(entry.placement)
                    self._look_elsewhere(entry)
                self._stand_in_where_asked()
                self._wake()
            await changed.wait()

    def _look_elsewhere(self, entry: AppEntry) -> None:
        if entry.following is None:
            self._elsewhere = None
        elif self._elsewhere is None or self._elsewhere.epoch != entry.following.epoch:
            self._elsewhere = _Move(self._placed, epoch=entry.following.epoch)

    async def _end_late_lives(self) -> None:
        """Kill the lives that hold a change up: their death is a proof, and it goes on."""
        while True:
            await self._until(lambda: self._elsewhere is not None)
            await anyio.sleep(BETWEEN_LOOKS_S)
            entry = self._placed.entry
            if entry is None or entry.following is None:
                continue
            shards = {shard.member.life: shard for shard in self._shards() if shard.is_up}
            for life in self._late.tick(entry.following.epoch, shards.keys() & entry.names.keys()):
                incarnation = shards[life].incarnation
                assert incarnation is not None
                log.error("change.life_killed shard=%s life=%d %s", shards[life].member.name, life, self._late.reason)
                incarnation.running.kill()

    def _stand_in_where_asked(self) -> None:
        for member in self._placed.asked_stand_ins:
            if member.name not in self._stand_ins and not self._app.is_stopping:
                self._stand_ins.add(member.name)
                self._app.start_soon(self._stand_in, member)

    async def _stand_in(self, member: Member) -> None:
        """Have a shard that was given up run here, as long as that is asked for."""
        try:
            while any(asked.name == member.name for asked in self._placed.asked_stand_ins):
                try:
                    shard = self._opened_stand_in(member)
                except OSError as error:
                    log.warning("shard.no_stand_in shard=%s reason=%s", member.name, error)
                else:
                    self._app.begin_beside(shard)
                    await shard.ended.wait()
                    for sock in shard.sockets:
                        sock.close()
                if self._app.is_stopping:
                    return
                await anyio.sleep(STAND_IN_AGAIN_S)
        finally:
            self._stand_ins.discard(member.name)

    def _opened_stand_in(self, member: Member) -> SupervisedShard:
        """Clients reach nothing of it: its address is that of a machine which was given up."""
        number = self._app.next_life()
        path = Path(self._app.shards[0].member.socket).with_name(f"{self._app.name}-for.{number}.sock")
        shard = SupervisedShard(replace(member, socket=str(path), life=0), FIRST_STAND_IN + number, stands_in=True)
        listening_sockets = (listening("127.0.0.1:0"), listening("127.0.0.1:0"), listening(f"unix:{path}"))
        shard.listen(listening_sockets, ListeningPath(str(path)))
        return shard

    def _wake(self) -> None:
        followed, self._followed = self._followed, anyio.Event()
        followed.set()

    # For the app

    @property
    def running(self) -> _Move | None:
        return self._running

    @property
    def elsewhere(self) -> ChangeElsewhere | None:
        entry, move = self._placed.entry, self._elsewhere
        if self._running is not None or move is None or entry is None or entry.following is None:
            return None
        before, after = entry.placement, entry.following
        return ChangeElsewhere(what_changes(before, after), before.epoch, after.epoch, move)

    @property
    def shared_pins(self) -> "ClusterPins":
        return ClusterPins(self._app, self._cluster, self._until)

    def more_sockets(self, shard: SupervisedShard) -> Sequence[socket.socket]:
        if shard.link is None:
            shard.link = listening_at(self._cluster.advertise, self._cluster.link_ports)
            port = shard.link.getsockname()[1]
            shard.link_address = str(LinkAddress(self._cluster.name, self._cluster.advertise, port))
        return (shard.link,)

    def number(self, shard: SupervisedShard) -> int:
        # Of no life: the store gives the number once there is a lease, and a number of this machine alone might be
        # that of another life.
        return 0

    async def begin(self, shard: SupervisedShard, incarnation: Incarnation, dead_life: int) -> Start | None:
        line, start = _Line(self, shard, incarnation), None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_after, incarnation.running.wait, tasks.cancel_scope)
            tasks.start_soon(_cancel_after, self._app.stopping.wait, tasks.cancel_scope)
            shard.renumber(await self._cluster.next_life())
            identity_key = await self._cluster.identity_key()
            placement = await self._begin(shard, line)
            start = Start(placement, line.change, self._cluster.links, identity_key)
            tasks.cancel_scope.cancel()
        return None if incarnation.has_lost_its_lease else start

    async def _begin(self, shard: SupervisedShard, line: "_Line") -> Placement:
        follows = shard.stands_in or self._follows(shard)
        if follows and not shard.stands_in:
            self._owners[shard.member.name] = shard
        self._placed.launched(self._member_of(shard), line, follows=follows, is_stand_in=shard.stands_in)
        await line.begun.wait()
        assert line.placement is not None
        return line.placement

    def _follows(self, shard: SupervisedShard) -> bool:
        """Whether keys may belong to this shard already."""
        if (owner := self._owners.get(shard.member.name)) is not None:
            return owner is shard
        entry = self._placed.entry
        # Of an earlier start of this machine.
        return entry is None or any(member.name == shard.member.name for member in entry.placement.members)

    def became_ready(self, shard: SupervisedShard) -> None:
        owner = self._owners.get(shard.member.name)
        if owner is shard or (owner is None and shard in self._app.shards):
            self._own(shard)

    def _own(self, shard: SupervisedShard) -> None:
        self._owners[shard.member.name] = shard
        self._placed.ready(shard.member.life)

    def died(self, shard: SupervisedShard) -> None:
        for move in self._moves():
            move.progress.pop(shard.member.life, None)
        self._placed.ended(shard.member.life)

    def reported(self, shard: SupervisedShard, message: control_pb2.ToSupervisor) -> None:
        life = shard.member.life
        match message.WhichOneof("kind"):
            case "departed":
                self._placed.departed(life, message.departed)
            case "arrived":
                self._placed.arrived(life, message.arrived)
            case "progress":
                self._late.progressed(life, message.progress)
                for move in self._moves():
                    move.progress[life] = message.progress

    def _moves(self) -> Sequence[_Move]:
        return [move for move in (self._running, self._elsewhere) if move is not None]

    def moves(self, plan: ChangePlan) -> bool:
        rows = [shard for shard in self._app.shards if shard not in plan.leaving] + list(plan.joining)
        wanted = {shard.member.name: shard for shard in rows if shard.index in plan.target.placed}
        return wanted != self._owners

    async def move(self, plan: ChangePlan, trace: ChangeTrace) -> Placement:
        self._running = _Move(self._placed)
        self._placed.traced(trace.traceparent)
        trace.add_event("begun")
        log.info("change.wanted app=%s what=%s", self._app.name, plan.what)
        rows = [shard for shard in self._app.shards if shard not in plan.leaving] + list(plan.joining)
        wanted = {shard.member.name: shard for shard in rows if shard.index in plan.target.placed}
        for name in self._owners.keys() - wanted.keys():
            del self._owners[name]
            self._placed.unplaced(name)
        for name, shard in wanted.items():
            if self._owners.get(name) is not shard:
                self._own(shard)
        await self._until(lambda: self._owns_what_is_wanted() or self._app.is_stopping)
        if self._app.is_stopping:
            raise NotChanged(f"{self._app.name} stops")
        return self._app.placement

    def _owns_what_is_wanted(self) -> bool:
        """No change is under way, and of the lives of this machine the placement names those that are to own keys."""
        entry = self._placed.entry
        if entry is None or entry.following is not None:
            return False
        placed = {member.socket for member in entry.placement.members}
        own = {shard.link_address for shard in self._shards() if not shard.stands_in}
        return placed & own == {shard.link_address for shard in self._owners.values()}

    def _owns_nothing(self) -> bool:
        entry = self._placed.entry
        placements = [] if entry is None else [entry.placement, *([entry.following] if entry.following else [])]
        placed = {member.socket for placement in placements for member in placement.members}
        return placed.isdisjoint(shard.link_address for shard in self._shards())

    def _shards(self) -> Sequence[SupervisedShard]:
        return (*self._app.shards, *self._app.beside)

    def over(self) -> None:
        self._running = None
        self._placed.traced("")
        self._cluster.announce()

    async def tell(self) -> None:
        # The lives follow the entry.
        pass

    async def settle(self) -> None:
        await self._until(lambda: self._owns_what_is_wanted() or self._app.is_stopping)

    @property
    def owns_keys(self) -> bool:
        return not self._owns_nothing()

    async def leave(self) -> None:
        self._wake()
        if not self._has_others():
            return
        for name in list(self._owners):
            del self._owners[name]
            self._placed.unplaced(name)
        with anyio.move_on_after(self._app.settings.drain_s + CHANGE_MARGIN_S) as leaving:
            # The others may be about to leave as well.
            await self._until(lambda: self._owns_nothing() or not self._has_others())
        if leaving.cancelled_caught:
            log.warning("machine.keys_not_moved app=%s in=%.1f", self._app.name, self._app.settings.drain_s)

    def _has_others(self) -> bool:
        """Whether another machine has a life that could take the keys."""
        records = self._cluster.view.machines() if self._cluster.view is not None else []
        others = [row for row in records if isinstance(row, MachineRecord) and row.name != self._cluster.name]
        return any(row.parts[self._app.name].placed for row in others if self._app.name in row.parts)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._followed.wait()

    # Members

    def _member_of(self, shard: SupervisedShard) -> Member:
        """As other machines know the present life."""
        return replace(shard.member, socket=shard.link_address)

    def _told(self, placement: Placement) -> Placement:
        """As the shards of this machine know it."""
        paths = {shard.link_address: shard.member.socket for shard in self._shards()}
        members = [replace(member, socket=paths.get(member.socket, member.socket)) for member in placement.members]
        return replace(placement, members=tuple(members))

    def prepare_to_proto(self, prepare: Prepare) -> control_pb2.Prepare:
        return control_pb2.Prepare(
            before=placement_to_proto(self._told(prepare.before)),
            after=placement_to_proto(self._told(prepare.after)),
            gone=sorted(prepare.dead),
            traceparent="" if self._placed.entry is None else self._placed.entry.traceparent,
        )

    def message_of(self, message: Message) -> control_pb2.ToShard:
        match message:
            case Placement():
                return control_pb2.ToShard(placement=placement_to_proto(self._told(message)))
            case Prepare():
                return control_pb2.ToShard(prepare=self.prepare_to_proto(message))
            case Gone(life):
                return control_pb2.ToShard(gone=control_pb2.ShardMember(life=life))
            case Reborn(member):
                (as_named,) = self._told(Placement(0, (member,))).members
                return control_pb2.ToShard(reborn=member_to_proto(as_named))

    def beginning_of(self, beginning: Beginning) -> tuple[Placement, control_pb2.Prepare | None]:
        # A life that joins before there is an entry follows it, so it begins with one.
        assert beginning.placement is not None
        prepare = beginning.prepare
        return self._told(beginning.placement), None if prepare is None else self.prepare_to_proto(prepare)

    def leave_place(self, shard: SupervisedShard) -> None:
        """A life is in no placement any more. Those of this machine's own shards end with the change that has left them
        out, or go on without keys."""
        if shard.stands_in and shard.state is not ShardState.LEAVING:
            shard.follow(ShardEvent.LEAVE_ASKED)
            self._app.start_soon(self._app.retire, shard)


class _Line:
    """See `placed_lives.LifeLine`: the way to one process."""

    def __init__(self, placing: ClusterPlacing, shard: SupervisedShard, incarnation: Incarnation) -> None:
        self._placing, self._shard, self._incarnation = placing, shard, incarnation
        self.begun = anyio.Event()
        self.placement: Placement | None = None
        self.change: control_pb2.Prepare | None = None

    async def begin(self, beginning: Beginning) -> None:
        self.placement, self.change = self._placing.beginning_of(beginning)
        self.begun.set()

    async def tell(self, message: Message) -> None:
        await self._incarnation.deliver(self._placing.message_of(message))

    async def leave(self) -> None:
        self._placing.leave_place(self._shard)


async def _cancel_after(wait: Callable[[], Awaitable[Any]], scope: anyio.CancelScope) -> None:
    await wait()
    scope.cancel()
