"""Machines of a cluster that fail in all ways while clients call: what is done to them, and whom it may touch."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

from onelane.cluster.coordination import CoordinationUnavailable
from onelane.cluster.coordination.address import etcd_address
from onelane.cluster.coordination.etcd import EtcdStore
from onelane.cluster.machines import ClusterKeys, ClusterView
from onelane.cluster.placements import AppEntry, entry_of
from onelane.core.keys import canonical
from onelane.core.placement import Placement

from tests.chaos import drift
from tests.chaos.clients import Failure, History
from tests.chaos.service import KEPT
from tests.history.operations import Lose, Operation
from tests.namespaces.machines import CLUSTER, PORT, Cluster, Machine
from tests.namespaces.network import Host

APP = "mixed"
NAMES = ("a", "b", "c")
JOINING = "d"
"""The machine that comes and goes."""
ALL_ADDRESSES = "all"
"""The name of the client that has them."""
SETTLED_S = 100.0
TOML = f"""
[apps.{APP}]
services = ["tests.chaos.service:Mixed"]
listen = "{{address}}:{PORT}"
shards = SHARDS
max_late_s = 60
[apps.{APP}.state]
store = "postgresql"
dsn = "DSN"
patience_s = 1
"""
Touches = Callable[[str, str], bool]
"""Whether a call may fail that was sent to this machine (or by a client that has several), with a key of that one."""


@dataclass(frozen=True)
class Harm:
    """Something that was done, and the calls that may fail of it: those that were under way within this time."""

    what: str
    began_at: float
    ended_at: float
    owners: dict[str, str]
    """Key → the machine that had it before, of those that it may touch."""
    touches: Touches

    def explains(self, failure: Failure) -> bool:
        is_then = failure.called_at <= self.ended_at and failure.at >= self.began_at
        return is_then and failure.key in self.owners and self.touches(failure.client, self.owners[failure.key])


@dataclass
class ClusterRecord:
    """What was done in one run."""

    harms: list[Harm] = field(default_factory=list)
    losses: list[Operation] = field(default_factory=list)
    """For the history: what each harm may have taken along, of keys in memory."""
    seconds: dict[str, float] = field(default_factory=dict)
    """What took how long."""
    notes: list[str] = field(default_factory=list)
    """What the seed has chosen."""

    def unexplained(self, failures: Sequence[Failure]) -> list[Failure]:
        return [failure for failure in failures if not any(harm.explains(failure) for harm in self.harms)]


class MachinesUnderTest:
    """See the module. All methods are of the tests' loop; what blocks runs in threads."""

    def __init__(self, cluster: Cluster, *, shards: int = 1) -> None:
        """shards: of each machine."""
        self.cluster = cluster
        self.shards = shards
        self.machines: dict[str, Machine] = {}
        """Those that were started, and have not left or been killed."""
        self.keys: Sequence[str] = ()
        """That clients call; set for each run."""
        self.names: tuple[str, str, str] = NAMES
        """Of the machines, the one that is harmed last; set for each run."""
        self.rng = Random()
        """Of what the seed chooses; set for each run."""
        self.history = History()
        self.record = ClusterRecord()
        self._stacks: dict[str, ExitStack] = {}
        self._names = ClusterKeys(CLUSTER)

    @property
    def lease_s(self) -> int:
        return self.cluster.lease_s

    @property
    def toml(self) -> str:
        assert self.cluster.postgres is not None
        return TOML.replace("DSN", self.cluster.postgres.network_dsn).replace("SHARDS", str(self.shards))

    # Machines

    async def start(self, name: str, *, clock_rate: float = 1.0) -> Machine:
        """Until it is ready: it has its keys. clock_rate: of its clock, by that of this machine."""
        stack = ExitStack()
        environment = {} if clock_rate == 1.0 else drift.environment_of(clock_rate)
        up = self.cluster.up(name, self.toml, **environment)
        self.machines[name] = await asyncio.to_thread(stack.enter_context, up)
        self._stacks[name] = stack
        return self.machines[name]

    async def leave(self, name: str) -> None:
        """By SIGTERM, until it has ended."""
        machine, stack = self.machines.pop(name), self._stacks.pop(name)
        code = await asyncio.to_thread(machine.app.stop)
        await asyncio.to_thread(stack.close)
        assert code == 0, f"{name} ended with {code}: {machine.app.log.read_text()[-2000:]}"

    async def kill(self, name: str) -> None:
        """All its processes at one moment; nobody is told, as no packet of it comes any more."""
        machine, stack = self.machines.pop(name), self._stacks.pop(name)
        # Else the kernel, which goes on, would end its connections.
        with self.cluster.network.isolated(machine.host):
            await asyncio.to_thread(machine.host.kill)
            await asyncio.to_thread(stack.close)

    async def close(self) -> None:
        for name in list(self.machines):
            await self.leave(name)

    def host(self, name: str) -> Host:
        return self.cluster.host(name)

    @property
    def postgres_host(self) -> Host:
        assert self.cluster.postgres is not None
        assert self.cluster.postgres.host is not None
        return self.cluster.postgres.host

    @property
    def etcd_hosts(self) -> list[Host]:
        return [host for member in self.cluster.members if (host := member.host) is not None]

    def log_of(self, name: str) -> list[str]:
        """Of its last start."""
        path = self.cluster.folder / name / "log"
        return path.read_text(errors="replace").splitlines() if path.exists() else []

    # What is known of them

    async def view(self) -> ClusterView:
        """By etcd.

        Raises:
            CoordinationUnavailable: it does not answer.
        """
        store = EtcdStore(etcd_address(self.cluster.settings_of("a")))
        try:
            return ClusterView(self._names, await store.read(self._names.prefix))
        finally:
            await store.close()

    async def entry(self) -> AppEntry:
        """Of the app; waits for etcd."""
        while True:
            try:
                entries = (await self.view()).snapshot.entries
                if (stored := entries.get(self._names.app(APP))) is not None:
                    return entry_of(stored.value, APP)
            except CoordinationUnavailable:
                pass
            await asyncio.sleep(0.1)

    async def settled(self, *names: str) -> Placement:
        """Once all shards of these machines, and no others, have the keys, and no change is under way."""
        async with asyncio.timeout(SETTLED_S):
            while True:
                entry = await self.entry()
                shards = Counter(map(_machine_of, entry.placement.members))
                if entry.following is None and shards == dict.fromkeys(names, self.shards):
                    return entry.placement
                await asyncio.sleep(0.1)

    async def coordinator(self) -> str:
        """The name of the machine that coordinates."""
        view = await self.view()
        candidate = view.coordinator()
        assert candidate is not None
        return view.by_lease()[candidate.lease_id].name

    async def wrote(self, count: int) -> None:
        """Once so many things were written from now on: records of machines, and the entry of the app."""
        store = EtcdStore(etcd_address(self.cluster.settings_of("a")))
        try:
            since = (await store.read(self._names.prefix)).revision
            async with aclosing(store.watch(self._names.prefix, since)) as news:
                async for changes in news:
                    count -= sum(
                        key.startswith((self._names.machines, self._names.app(""))) for key, _ in changes.entries
                    )
                    if count <= 0:
                        return
        finally:
            await store.close()

    async def answered(self) -> None:
        """Once every key was answered since: it has an owner."""
        known = len(self.history.answers)
        async with asyncio.timeout(SETTLED_S):
            while {answer.key for answer in self.history.answers[known:]} != {*self.keys}:  # noqa: ASYNC110 - of many
                await asyncio.sleep(0.05)

    async def owners(self) -> dict[str, str]:
        """Key → its machine, of those that clients call, with no change under way."""
        entry = await self.entry()
        assert entry.following is None, "a change is under way"
        return {key: _machine_of(entry.placement.owner_of(canonical(key))) for key in self.keys}

    # Harm

    @asynccontextmanager
    async def harm(
        self,
        what: str,
        *,
        touches: Touches,
        loses: Collection[str] = (),
        owners: dict[str, str] | None = None,
    ) -> AsyncIterator[None]:
        """Something is done meanwhile. loses: the machines whose keys in memory may be lost. owners: of the keys that
        it may touch; by default of all, as they are now."""
        known = await self.owners() if owners is None else owners
        began_at, number = time.monotonic(), len(self.record.harms)
        try:
            yield
        finally:
            ended_at = time.monotonic()
            self.record.harms.append(Harm(what, began_at, ended_at, known, touches))
            lost = [key for key, owner in known.items() if owner in loses and not key.startswith(KEPT)]
            self.record.losses += [Operation(key, Lose(number), began_at, ended_at) for key in lost]

    @contextmanager
    def cut_one_way(self, sources: Sequence[Host], targets: Sequence[Host]) -> Iterator[None]:
        """Meanwhile nothing that one of these sends comes to one of those."""
        with self.cut_ways([(source, target) for source in sources for target in targets]):
            yield

    @contextmanager
    def cut_ways(self, ways: Sequence[tuple[Host, Host]]) -> Iterator[None]:
        """Meanwhile nothing comes from the first of a pair to the second."""
        with ExitStack() as stack:
            for source, target in ways:
                stack.enter_context(self.cluster.network.cut_one_way(source, target))
            yield

    def delayed(
        self, sources: Sequence[Host], targets: Sequence[Host | str], way_s: tuple[float, float]
    ) -> AbstractContextManager[None]:
        """Meanwhile what one of these sends takes so long at least and at most to one of those."""
        least_s, most_s = way_s
        return self.cluster.network.delayed(
            sources, targets, least_s=least_s, most_s=most_s, seed=str(self.rng.random())
        )

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        began_at = time.monotonic()
        yield
        self.record.seconds[what] = time.monotonic() - began_at


def of_machine(name: str) -> Touches:
    """Calls that were sent to it, and those with a key of it."""
    return lambda entry, owner: name in (entry, owner)


def sent_to(name: str) -> Touches:
    """Calls that were sent to it, and no others with its keys."""
    return lambda entry, _: entry == name


def between(first: str, victim: str, others: Collection[str]) -> Touches:
    """Calls that `victim` has to send on to one of the others, or back. first: that clients of all addresses call."""

    def touches(entry: str, owner: str) -> bool:
        pair = {first if entry == ALL_ADDRESSES else entry, owner}
        return any(pair == {victim, other} for other in others)

    return touches


def everything(entry: str, owner: str) -> bool:
    return True


def _machine_of(member: Any) -> str:
    return str(member.name.partition("/")[0])
