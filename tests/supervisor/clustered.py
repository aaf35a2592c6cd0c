"""Machines of a cluster in one process, each with a supervisor's parts for it and lives that move state by the real
`Handoff`: all but processes and sockets is real."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from onelane.cluster.coordination import CoordinationStore
from onelane.cluster.following import Beginning, Message
from onelane.cluster.machines import ClusterKeys, ClusterView, MachineRecord
from onelane.cluster.placements import AppEntry, entry_of
from onelane.core.handoff import SERVE, Action, Arrived, Departed, Forget, Handoff, Install, Refuse, Send, SendDone
from onelane.core.placement import Member, Placement
from onelane.core.placement_change import Gone, Prepare, Reborn
from onelane.supervisor.coordinator import Coordinator, FirstPlacement
from onelane.supervisor.machine import Machine
from onelane.supervisor.placed_lives import PlacedLives, follow_machine

KEYS = ClusterKeys("arena")
APP = "lobby"
SERVED = [f"k{number}" for number in range(24)]


class Sites:
    """All machines of a test, and what must hold over them."""

    def __init__(self) -> None:
        self.shards: dict[int, ScriptedShard] = {}
        """By life; those that run."""
        self.last_life = 0
        self.epochs: list[int] = []
        self.changed = asyncio.Event()

    def check(self) -> None:
        """Never two owners."""
        for key in SERVED:
            owners = [shard.member.name for shard in self.shards.values() if shard.may_serve(key)]
            assert len(owners) <= 1, f"{key} is served by {owners}"
        self.changed.set()
        self.changed = asyncio.Event()

    def owner_of(self, key: str) -> "ScriptedShard | None":
        return next((shard for shard in self.shards.values() if shard.may_serve(key)), None)

    def owners(self) -> set[str]:
        """The shards that serve keys, once each key has one; else nothing."""
        owners = [self.owner_of(key) for key in SERVED]
        return {owner.member.name for owner in owners if owner is not None} if all(owners) else set()

    async def until_served_by(self, *names: str) -> None:
        while self.owners() != set(names):
            await self.changed.wait()

    async def pump(self) -> None:
        """Deliver what the lives send each other, for ever."""
        while True:
            changed = self.changed
            for shard in list(self.shards.values()):
                shard.deliver()
            await changed.wait()


@dataclass
class ScriptedShard:
    """One life, as `LifeLine` and as the shard at its other end."""

    member: Member
    sites: Sites
    placed: PlacedLives
    placement: Placement | None = None
    handoff: Handoff | None = None
    state: dict[str, int] = field(default_factory=dict)
    outbox: list[Send | SendDone] = field(default_factory=list)

    async def begin(self, beginning: Beginning) -> None:
        self.placement = beginning.placement
        if beginning.prepare is not None:
            await self.tell(beginning.prepare)
        self.sites.check()
        asyncio.get_running_loop().call_soon(self.placed.ready, self.member.life)

    async def tell(self, message: Message) -> None:
        match message:
            case Placement():
                self.placement, self.handoff, self.outbox = message, None, []
            case Prepare():
                self.handoff = Handoff(self.member, message.before, message.after, message.dead)
                self.act(self.handoff.begin(()))
                self.act(self.handoff.scanned([*self.state]))
                self.act(self.handoff.scan_done())
            case Gone(life):
                self.outbox = [item for item in self.outbox if item.to.life != life]
                self.act(self._changing.gone(life))
            case Reborn(member):
                self.act(self._changing.reborn(member))
        self.sites.check()

    async def leave(self) -> None:
        self.end()

    def end(self) -> None:
        """Its process ends."""
        self.sites.shards.pop(self.member.life, None)
        self.placed.ended(self.member.life)

    def may_serve(self, key: str) -> bool:
        if self.handoff is not None:
            return self.handoff.where(key, 0) is SERVE
        return self.placement is not None and self.placement.owner_of(key).life == self.member.life

    @property
    def _changing(self) -> Handoff:
        assert self.handoff is not None
        return self.handoff

    def act(self, actions: Sequence[Action]) -> None:
        epoch = self._changing.after.epoch
        for action in actions:
            match action:
                case Send() | SendDone():
                    self.outbox.append(action)
                case Forget(keys):
                    self.state = {key: value for key, value in self.state.items() if key not in keys}
                case Departed():
                    self.placed.departed(self.member.life, epoch)
                case Arrived():
                    self.placed.arrived(self.member.life, epoch)

    def deliver(self) -> None:
        """What can be sent now."""
        before = list(self.outbox)
        for item in before:
            to = self.sites.shards.get(item.to.life)
            epoch = None if self.handoff is None else self.handoff.after.epoch
            if to is None or to.handoff is None or to.handoff.after.epoch != epoch or item not in self.outbox:
                continue
            if isinstance(item, SendDone):
                self.outbox.remove(item)
                to.act(to.handoff.done(self.member.life, to.member.life))
            else:
                self._hand_over(item, to, to.handoff)
        if self.outbox != before:
            self.sites.check()

    def _hand_over(self, item: Send, to: "ScriptedShard", receiving: Handoff) -> None:
        actions = receiving.moved(self.member.life, to.member.life, item.keys)
        if any(isinstance(action, Refuse) for action in actions):
            return
        fresh = [key for action in actions if isinstance(action, Install) for key in action.keys]
        to.state |= {key: self.state[key] for key in fresh}
        self.outbox.remove(item)
        to.act(receiving.installed(fresh))
        self.act(self._changing.sent_acknowledged(to.member.life, item.keys))


class Site:
    """One machine: lease, coordinator, lives. It is `machine.MachineLives` itself."""

    def __init__(self, name: str, store: CoordinationStore, sites: Sites, *, lease_s: float, clock: Any = None) -> None:
        """clock: of the coordinator: `now` and `sleep`."""
        record = MachineRecord(name=name, advertise="127.0.0.1", release="0", lease_s=lease_s, start=f"{name}-1")
        self.name, self.sites = name, sites
        self.machine = Machine(store, KEYS, record, self)
        clocks = {} if clock is None else {"now": clock.now, "sleep": clock.sleep}
        self.coordinator = Coordinator(store, self.machine, lambda _: FirstPlacement(7, 64), **clocks)
        self.placed = PlacedLives(APP, name, self._announce)
        self.member = Member(f"lobby-{name}", f"127.0.0.1:{1000 + ord(name)}", "")

    def _announce(self, *, within_s: float = 0.0) -> None:
        self.machine.announce({APP: self.placed.lives}, {APP: self.placed.part}, within_s=within_s)

    def launch(
        self, member: Member | None = None, *, follows: bool = False, is_stand_in: bool = False
    ) -> ScriptedShard:
        self.sites.last_life += 1
        life, member = self.sites.last_life, member or self.member
        member = Member(member.name, member.address, f"s{life}", life)
        shard = ScriptedShard(member, self.sites, self.placed)
        self.sites.shards[life] = shard
        self.placed.launched(member, shard, follows=follows, is_stand_in=is_stand_in)
        return shard

    @property
    def shards(self) -> list[ScriptedShard]:
        return [shard for shard in self.sites.shards.values() if shard.placed is self.placed]

    # For the machine

    async def start(self, lease_id: int, until: float) -> None:
        self.launch()

    def extend(self, lease_id: int, until: float) -> None:
        pass

    async def end(self, lease_id: int) -> None:
        for shard in self.shards:
            shard.end()

    # For a test

    async def run(self) -> None:
        async def stand_in(member: Member) -> None:
            self.launch(member, follows=True, is_stand_in=True)

        machine = self.machine
        following = follow_machine(self.placed, lambda: machine.view, lambda: machine.changed, stand_in)
        async with asyncio.TaskGroup() as tasks:
            for work in (machine.run(), self.coordinator.run(), following):
                tasks.create_task(work)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Site"]:
        """Until it leaves at the end."""
        running = asyncio.ensure_future(self.run())
        try:
            yield self
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running

    async def leave(self) -> None:
        """Have all keys go elsewhere."""
        self.placed.unplaced(self.member.name)
        while self.shards:
            await self.sites.changed.wait()

    def kill(self) -> None:
        """All its processes end, and nobody is told."""
        for shard in self.shards:
            self.sites.shards.pop(shard.member.life)
        self.sites.check()


@contextmanager
def pumping(sites: Sites) -> Iterator[None]:
    task = asyncio.get_running_loop().create_task(sites.pump())
    try:
        yield
    finally:
        task.cancel()


async def entry_in(store: CoordinationStore) -> AppEntry:
    view = ClusterView(KEYS, await store.read(KEYS.prefix))
    return entry_of(view.snapshot.entries[KEYS.app(APP)].value, APP)
