"""One run: clients of all machines of a cluster, a scenario, and what must hold of every answer."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from onelane.cluster.coordination import CoordinationUnavailable

from tests.chaos import owners
from tests.chaos.clients import Clients, Failure, History
from tests.chaos.cluster import ALL_ADDRESSES, JOINING, NAMES, ClusterRecord, MachinesUnderTest
from tests.chaos.failures import Scenario
from tests.chaos.service import KEPT
from tests.chaos.text import words
from tests.coroutine_stacks import ended
from tests.history.linearizability import check
from tests.namespaces.machines import new_cluster

KEYS = 12
"""In memory; and as many durable ones."""
PAUSE_S = 0.03
LOG_LINES = 60
LONGEST_S = 900.0
"""Of a run: several times what the longest takes on a busy machine. A hang is told then."""
STORE_S = 10.0
"""How long etcd is asked where the machines stand; it may be what hangs."""


@dataclass(frozen=True)
class ClusterOutcome:
    """Of a run whose history is linearizable, and in which no key had two owners."""

    scenario: str
    seed: int
    history: History
    record: ClusterRecord
    owners: int
    """All keys'."""

    def lines(self) -> list[str]:
        """For people."""
        history, seconds = self.history, self.record.seconds
        codes = Counter(f"{failure.code} to {failure.client}" for failure in history.failures)
        details = Counter(failure.details[:90] for failure in history.failures)
        return [
            f"{self.scenario}, seed {self.seed}: {len(history.operations)} calls, {len(history.failures)} failed, "
            f"{history.repeated.total()} repeated by id; {self.owners} owners of {2 * KEYS} keys",
            *(f"  {note}" for note in self.record.notes),
            *(f"  {what}: {took:.2f} s" for what, took in seconds.items()),
            *([f"  failed: {words(codes)}"] if codes else []),
            *(f"  {count} times: {text}" for text, count in details.most_common(4)),
        ]


@asynccontextmanager
async def machines_up(
    folder: Path, *, lease_s: int, etcd_members: int = 1, shards: int = 1, with_tls: bool = False
) -> AsyncIterator[MachinesUnderTest]:
    """Three machines, with all that they need. shards: of each of them. with_tls: on links, and to etcd."""
    certified = (*NAMES, JOINING) if with_tls else ()
    with new_cluster(
        folder, lease_s=lease_s, etcd_members=etcd_members, with_postgres=True, certified=certified
    ) as cluster:
        machines = MachinesUnderTest(cluster, shards=shards)
        try:
            await asyncio.gather(*map(machines.start, NAMES))
            yield machines
        finally:
            await machines.close()


async def run(
    machines: MachinesUnderTest,
    scenario: Scenario,
    seed: int,
    *,
    within_s: float = LONGEST_S,
    pause_s: float = PAUSE_S,
) -> ClusterOutcome:
    """pause_s: of a client, from an answer to its next call.

    Raises:
    AssertionError: the history is not linearizable, a key had two owners, a call has failed that nothing explains, or
        something hangs; with all that is known.
    """

    async def standing() -> list[str]:
        return [*machines.record.notes, *await _standing(machines)]

    what = f"{scenario.name}, seed {seed}"
    return await ended(_run(machines, scenario, seed, pause_s), what, within_s=within_s, circumstances=standing)


async def _run(machines: MachinesUnderTest, scenario: Scenario, seed: int, pause_s: float) -> ClusterOutcome:
    await machines.settled(*NAMES)
    plain = [f"{seed}-{number}" for number in range(KEYS)]
    durable = [f"{KEPT}-{key}" for key in plain]
    machines.keys, machines.record = [*plain, *durable], ClusterRecord()
    history = machines.history = History()
    victim = await machines.coordinator() if scenario.harms_coordinator else NAMES[seed % len(NAMES)]
    first, second = (name for name in NAMES if name != victim)
    machines.names, machines.rng = (first, second, victim), Random(f"{scenario.name}/{seed}")
    parties = [
        _dialled(
            machines,
            Clients(keys, seed, history, pause_s=pause_s, calls_through=False, most=1),
            with_id=keys is durable,
        )
        for keys in (plain, durable)
    ]
    for party in parties:
        party.start()
    try:
        try:
            # Our client knows the ring from here on.
            await machines.answered()
            await scenario.act(machines)
            await machines.answered()
        finally:
            for party in parties:
                await party.stop()
        outcome = ClusterOutcome(scenario.name, seed, history, machines.record, owners.check(history.answers))
        await asyncio.to_thread(check, [*history.operations, *machines.record.losses])
        if unexplained := machines.record.unexplained(history.failures):
            raise AssertionError(f"{len(unexplained)} calls failed for no reason, the first {_first(unexplained)}")
    except (AssertionError, TimeoutError) as error:
        raise AssertionError(
            "\n".join([f"{scenario.name}, seed {seed}: {machines.record.notes} {error!r}", *_circumstances(machines)])
        ) from error
    return outcome


def _first(failures: Sequence[Failure]) -> str:
    return "\n".join(map(str, failures[:3]))


def _dialled(machines: MachinesUnderTest, clients: Clients, *, with_id: bool) -> Clients:
    """A stock client at each machine, one that knows all addresses, and ours."""
    addresses = [machines.machines[name].address() for name in machines.names]
    for name, address in zip(machines.names, addresses, strict=True):
        clients.add_stock(name, address, with_id=with_id)
    clients.add_stock(ALL_ADDRESSES, f"ipv4:{','.join(addresses)}", with_id=with_id)
    clients.add_ours(addresses[0])
    return clients


async def _standing(machines: MachinesUnderTest) -> list[str]:
    """Where each machine stands by its record, then the last lines of its log."""
    lines = []
    try:
        async with asyncio.timeout(STORE_S):
            entry, view = await machines.entry(), await machines.view()
        following = None if entry.following is None else entry.following.epoch
        lines = [f"epoch {entry.placement.epoch}, which a change leads to {following}"]
        lines += [f"{record.name}: {getattr(record, 'parts', 'cannot be read')}" for record in view.machines()]
    except (TimeoutError, CoordinationUnavailable) as error:
        lines.append(f"etcd does not tell where they stand: {error!r}")
    return [*lines, *_circumstances(machines)]


def _circumstances(machines: MachinesUnderTest) -> list[str]:
    """For the search of a fault: the last lines of the log of each machine."""
    lines: list[str] = []
    for name in (*NAMES, JOINING):
        log = machines.log_of(name)
        lines += [f"--- {name}", *log[-LOG_LINES:]]
    return lines
