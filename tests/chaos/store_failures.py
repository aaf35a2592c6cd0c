"""What becomes of etcd's members among each other, and of PostgreSQL, one scenario each, as in `failures`."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import permutations

from tests.chaos.cluster import NAMES, MachinesUnderTest, everything
from tests.chaos.failures import joins_and_leaves
from tests.etcd import EtcdServer


async def etcd_leader_in_the_minority(machines: MachinesUnderTest) -> None:
    await _goes_on_without(machines, leader_of(machines))


async def etcd_first_member_in_the_minority(machines: MachinesUnderTest) -> None:
    """It is the one that every machine asks first."""
    await _goes_on_without(machines, machines.cluster.members[0])


async def _goes_on_without(machines: MachinesUnderTest, member: EtcdServer) -> None:
    """While a machine joins and leaves: machines reach this member, which reaches no other one. No call fails, and
    nobody is given up."""
    before = await machines.settled(*NAMES)
    with cut_off(machines, [member]):
        await joins_and_leaves(machines)
        await asyncio.sleep(2 * machines.lease_s)
    await machines.answered()
    assert {*(await machines.settled(*NAMES)).members} == {*before.members}, "a machine was given up"


async def etcd_members_cut_apart(machines: MachinesUnderTest) -> None:
    """All of them, for three leases: as where etcd is down."""
    before = await machines.settled(*NAMES)
    async with machines.harm("etcd cut apart", touches=everything):
        with cut_off(machines, machines.cluster.members):
            await asyncio.sleep(3 * machines.lease_s)
        with machines.timed("from the end of the cut to answers"):
            await machines.answered()
    assert (await machines.settled(*NAMES)).epoch == before.epoch


async def postgres_dies(machines: MachinesUnderTest) -> None:
    """For a lease and a half. Calls wait, or say that they are unavailable; what is in memory stays there."""
    before = await machines.settled(*NAMES)
    known = len(machines.history.failures)
    # Also calls of keys in memory: our client gives each change an id, whose answer is kept there.
    async with machines.harm("no PostgreSQL", touches=everything):
        async with without_postgres(machines):
            await asyncio.sleep(1.5 * machines.lease_s)
        with machines.timed("from PostgreSQL's start to answers"):
            await machines.answered()
    failed = {f"{failure.code} {failure.details}" for failure in machines.history.failures[known:]}
    unclear = [failure for failure in failed if not failure.startswith("UNAVAILABLE")]
    assert not unclear, f"no clear status: {unclear[:3]}"
    assert (await machines.settled(*NAMES)).epoch == before.epoch


# What is done


def leader_of(machines: MachinesUnderTest) -> EtcdServer:
    return next(member for member in machines.cluster.members if member.leads())


@contextmanager
def cut_off(machines: MachinesUnderTest, members: Sequence[EtcdServer]) -> Iterator[None]:
    """Meanwhile each of these members of etcd reaches no other one, and none reaches it."""
    hosts = machines.etcd_hosts
    alone = [host for host, member in zip(hosts, machines.cluster.members, strict=True) if member in members]
    pairs = [*permutations(hosts, 2)]
    with machines.cut_ways([(source, target) for source, target in pairs if source in alone or target in alone]):
        yield


@asynccontextmanager
async def without_postgres(machines: MachinesUnderTest) -> AsyncIterator[None]:
    """Meanwhile it is dead; how its clients learn of that is the seed's choice. At the end it is back."""
    postgres = machines.cluster.postgres
    assert postgres is not None
    if machines.rng.random() < 0.5:
        # As its host loses its power: no packet says so.
        with machines.cluster.network.isolated(machines.postgres_host):
            await asyncio.to_thread(machines.postgres_host.kill)
    else:
        await asyncio.to_thread(machines.postgres_host.kill)
    yield
    await asyncio.to_thread(postgres.start)
