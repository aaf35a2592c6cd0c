"""What becomes of machines, one scenario each: it begins and ends with `a`, `b` and `c` in the cluster.

The last of `machines.names` is harmed; clients that know several addresses call the first.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass

from tests.chaos.cluster import (
    JOINING,
    NAMES,
    MachinesUnderTest,
    between,
    everything,
    of_machine,
    sent_to,
)
from tests.namespaces.network import Host

Act = Callable[[MachinesUnderTest], Awaitable[None]]
LOSS = 0.1
LINK_DEAD_S = 6.0
"""A link of which nothing was heard for 5 s is ended."""
FAR_S, NEAR_S, NEAREST_S = (0.05, 0.3), (0.01, 0.05), (0.005, 0.02)
"""The shortest and the longest time of a packet on its way."""


@dataclass(frozen=True)
class Scenario:
    """See the module."""

    name: str
    act: Act
    harms_coordinator: bool = False
    """Else a machine that the seed says."""


async def joins_and_leaves(machines: MachinesUnderTest) -> None:
    await machines.start(JOINING)
    await machines.settled(*NAMES, JOINING)
    await machines.leave(JOINING)
    await machines.settled(*NAMES)


async def rolled(machines: MachinesUnderTest) -> None:
    """Each machine leaves, and comes back, as in a deployment."""
    for name in machines.names:
        await _rolled(machines, name)


async def one_rolled(machines: MachinesUnderTest) -> None:
    await _rolled(machines, machines.names[-1])


async def _rolled(machines: MachinesUnderTest, name: str) -> None:
    # A client that knows no other address than that of the machine has none meanwhile.
    async with machines.harm("away", touches=sent_to(name)):
        await machines.leave(name)
        await machines.start(name)
        await machines.settled(*NAMES)


async def killed(machines: MachinesUnderTest) -> None:
    first, second, victim = machines.names
    async with machines.harm("away", touches=sent_to(victim)):
        async with machines.harm("kill", touches=of_machine(victim), loses=[victim]):
            await machines.kill(victim)
            with machines.timed("from the kill to a placement without it"):
                await machines.settled(first, second)
        await machines.start(victim)
        await machines.settled(*NAMES)


# Machines that are cut off. Those that do not reach etcd are given up; the others are not.


async def cut_off_from_etcd(machines: MachinesUnderTest) -> None:
    await _given_up(machines, to=machines.etcd_hosts, back=machines.etcd_hosts)


async def not_heard_by_etcd(machines: MachinesUnderTest) -> None:
    await _given_up(machines, to=machines.etcd_hosts, back=[])


async def does_not_hear_etcd(machines: MachinesUnderTest) -> None:
    await _given_up(machines, to=[], back=machines.etcd_hosts)


async def cut_off_from_all(machines: MachinesUnderTest) -> None:
    others = [*machines.etcd_hosts, *map(machines.host, machines.names[:2])]
    await _given_up(machines, to=others, back=others)


async def _given_up(machines: MachinesUnderTest, *, to: list[Host], back: list[Host]) -> None:
    first, second, victim = machines.names
    host = machines.host(victim)
    async with machines.harm("cut off", touches=of_machine(victim), loses=[victim]):
        with machines.cut_one_way([host], to), machines.cut_one_way(back, [host]):
            await machines.settled(first, second)
            # Others serve its keys by now, and clients go on calling it.
            await asyncio.sleep(machines.lease_s / 2)
        await machines.settled(*NAMES)


async def cut_off_from_others(machines: MachinesUnderTest) -> None:
    await _unreachable(machines, to=machines.names[:2], back=machines.names[:2])


async def cut_one_way_between_machines(machines: MachinesUnderTest) -> None:
    await _unreachable(machines, to=machines.names[:1], back=())


async def not_heard_by_others(machines: MachinesUnderTest) -> None:
    await _unreachable(machines, to=machines.names[:2], back=())


async def does_not_hear_others(machines: MachinesUnderTest) -> None:
    await _unreachable(machines, to=(), back=machines.names[:2])


async def _unreachable(machines: MachinesUnderTest, *, to: tuple[str, ...], back: tuple[str, ...]) -> None:
    """For longer than a lease, and nobody is given up."""
    victim = machines.names[-1]
    host = machines.host(victim)
    epoch = (await machines.settled(*NAMES)).epoch
    async with machines.harm("unreachable", touches=between(machines.names[0], victim, {*to, *back})):
        with (
            machines.cut_one_way([host], [*map(machines.host, to)]),
            machines.cut_one_way([*map(machines.host, back)], [host]),
        ):
            await asyncio.sleep(1.5 * machines.lease_s)
        # A link may be found dead by a ping that was sent before.
        await asyncio.sleep(LINK_DEAD_S)
    assert (await machines.settled(*NAMES)).epoch == epoch


async def frozen(machines: MachinesUnderTest) -> None:
    first, second, victim = machines.names
    async with machines.harm("frozen", touches=of_machine(victim), loses=[victim]):
        with machines.host(victim).frozen():
            await machines.settled(first, second)
            await asyncio.sleep(2 * machines.lease_s)
        await machines.settled(*NAMES)


async def loses_packets(machines: MachinesUnderTest) -> None:
    """Between all machines, and between them and etcd, for two leases, while one joins and leaves."""
    hosts = [*map(machines.host, (*NAMES, JOINING)), *machines.etcd_hosts]
    async with machines.harm("loss", touches=everything):
        with ExitStack() as stack:
            for source in hosts:
                for target in hosts:
                    if source is not target:
                        stack.enter_context(machines.cluster.network.lossy(source, target, LOSS))
            await joins_and_leaves(machines)
            await asyncio.sleep(machines.lease_s)


# Long ways


async def far_apart(machines: MachinesUnderTest) -> None:
    """Machines, their clients and etcd, while a machine joins and leaves. PostgreSQL is nearer: an operation is several
    ways there and back, in a second of patience; nearest are etcd's members to each other, by their elections."""
    etcd, postgres, those = machines.etcd_hosts, [machines.postgres_host], [*map(machines.host, (*NAMES, JOINING))]
    before = await machines.settled(*NAMES)
    async with machines.harm("far apart", touches=everything):
        with (
            machines.delayed(those, [*those, machines.cluster.network.address], FAR_S),
            machines.delayed(those, etcd, FAR_S),
            machines.delayed(etcd, those, FAR_S),
            machines.delayed(those, postgres, NEAR_S),
            machines.delayed(postgres, those, NEAR_S),
            machines.delayed(etcd, etcd, NEAREST_S),
        ):
            await joins_and_leaves(machines)
            await asyncio.sleep(machines.lease_s)
    assert {*(await machines.settled(*NAMES)).members} == {*before.members}, "a machine was given up"


async def far_and_cut_off_for_a_moment(machines: MachinesUnderTest) -> None:
    """From etcd, so far away that its connections take most of the time that is left of a lease. It is not given up."""
    victim = machines.names[-1]
    etcd, host = machines.etcd_hosts, [machines.host(victim)]
    before = await machines.settled(*NAMES)
    async with machines.harm("cut off far from etcd", touches=of_machine(victim)):
        with (
            machines.delayed(host, etcd, FAR_S),
            machines.delayed(etcd, host, FAR_S),
            machines.delayed(etcd, etcd, NEAREST_S),
        ):
            for _ in range(3):
                await asyncio.sleep(machines.lease_s)
                with machines.cut_one_way(host, etcd), machines.cut_one_way(etcd, host):
                    await asyncio.sleep(machines.lease_s / 4)
            await asyncio.sleep(machines.lease_s)
    assert await machines.settled(*NAMES) == before, "it was given up"


async def too_far_from_etcd(machines: MachinesUnderTest) -> None:
    """No request of a machine is answered in time, and some are carried out late: more than half a lease both ways."""
    first, second, victim = machines.names
    host, way_s = [machines.host(victim)], (machines.lease_s / 4, machines.lease_s / 3)
    async with machines.harm("far from etcd", touches=of_machine(victim), loses=[victim]):
        with (
            machines.delayed(host, machines.etcd_hosts, way_s),
            machines.delayed(machines.etcd_hosts, host, way_s),
        ):
            await machines.settled(first, second)
            await asyncio.sleep(machines.lease_s / 2)
        await machines.settled(*NAMES)


# etcd


async def etcd_loses_its_leader(machines: MachinesUnderTest) -> None:
    """No call fails, and nobody is given up."""
    epoch = (await machines.settled(*NAMES)).epoch
    leader = next(member for member in machines.cluster.members if member.leads())
    leader.stop()
    await asyncio.sleep(2 * machines.lease_s)
    await asyncio.to_thread(leader.start)
    assert (await machines.settled(*NAMES)).epoch == epoch


async def etcd_is_down(machines: MachinesUnderTest) -> None:
    """All of it, for 30 s: keys are served until the fences close, and then by nobody. Nobody is given up: memory is
    kept."""
    epoch = (await machines.settled(*NAMES)).epoch
    async with machines.harm("etcd down", touches=everything):
        for member in machines.cluster.members:
            member.stop()
        await asyncio.sleep(30)
        for member in machines.cluster.members:
            member.launch()
        with machines.timed("from etcd's start to answers"):
            for member in machines.cluster.members:
                await asyncio.to_thread(member.wait_until_it_serves)
            await machines.answered()
    assert (await machines.settled(*NAMES)).epoch == epoch


# The coordinator


async def coordinator_dies(machines: MachinesUnderTest, step: int) -> None:
    """While a machine joins, after so many writes of the change, or where it has fewer, at its end. Another one goes on
    with the change."""
    first, second, victim = machines.names
    async with machines.harm("away", touches=sent_to(victim)):
        async with machines.harm("kill of the coordinator", touches=of_machine(victim), loses=[victim]):
            joining = asyncio.ensure_future(machines.start(JOINING))
            writing = asyncio.ensure_future(machines.wrote(step))
            try:
                await asyncio.wait([joining, writing], return_when=asyncio.FIRST_COMPLETED)
                await machines.kill(victim)
                with machines.timed("from the kill to a placement without it"):
                    await machines.settled(first, second, JOINING)
            finally:
                writing.cancel()
                await asyncio.wait([joining, writing])
        await machines.leave(JOINING)
        await machines.settled(first, second)
        await machines.start(victim)
        await machines.settled(*NAMES)


# Clocks


async def clock_is_slow(machines: MachinesUnderTest) -> None:
    """By a tenth, and etcd's fast by a tenth: the machine that is cut off stops serving later than others do."""
    await _drifts(machines, 0.9 / 1.1)


async def clock_is_fast(machines: MachinesUnderTest) -> None:
    await _drifts(machines, 1.1 / 0.9)


async def clock_is_broken(machines: MachinesUnderTest) -> None:
    """Slower than any margin: two machines serve its keys, which the checks are to find. The machine stays as it is."""
    await _restarted(machines, 0.4)
    await cut_off_from_etcd(machines)


async def _drifts(machines: MachinesUnderTest, rate: float) -> None:
    await _restarted(machines, rate)
    await cut_off_from_etcd(machines)
    await _restarted(machines, 1.0)


async def _restarted(machines: MachinesUnderTest, clock_rate: float) -> None:
    victim = machines.names[-1]
    async with machines.harm("away", touches=sent_to(victim)):
        await machines.leave(victim)
        await machines.start(victim, clock_rate=clock_rate)
        await machines.settled(*NAMES)
    await machines.answered()
