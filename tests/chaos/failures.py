"""What becomes of machines, one scenario each: it begins and ends with `a`, `b` and `c` in the cluster."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.chaos.cluster import MachinesUnderTest, between, of_machine, sent_to

Act = Callable[[MachinesUnderTest], Awaitable[None]]
NAMES = ("a", "b", "c")


@dataclass(frozen=True)
class Scenario:
    """See the module."""

    name: str
    act: Act
    etcd_members: int = 1


async def joins_and_leaves(machines: MachinesUnderTest) -> None:
    await machines.start("d")
    await machines.settled(*NAMES, "d")
    await machines.leave("d")
    await machines.settled(*NAMES)


async def rolled(machines: MachinesUnderTest) -> None:
    """Each machine leaves, and comes back, as in a deployment."""
    for name in NAMES:
        # A client that knows no other address than that of the machine has none meanwhile.
        async with machines.harm("away", touches=sent_to(name)):
            await machines.leave(name)
            await machines.start(name)
            await machines.settled(*NAMES)


async def killed(machines: MachinesUnderTest) -> None:
    async with machines.harm("kill", touches=of_machine("c"), loses=["c"]):
        await machines.kill("c")
        with machines.timed("from the kill to a placement without it"):
            await machines.settled("a", "b")
    async with machines.harm("away", touches=sent_to("c")):
        await machines.start("c")
        await machines.settled(*NAMES)


async def cut_off_from_etcd(machines: MachinesUnderTest) -> None:
    async with machines.harm("cut off from etcd", touches=of_machine("c"), loses=["c"]):
        with machines.cut([machines.host("c")], machines.etcd_hosts):
            await machines.settled("a", "b")
        await machines.settled(*NAMES)


async def cut_one_way_between_machines(machines: MachinesUnderTest) -> None:
    """For longer than a lease, and nobody is given up."""
    epoch = (await machines.settled(*NAMES)).epoch
    async with machines.harm("one way", touches=between("a", "c")):
        with machines.cut_one_way([machines.host("c")], [machines.host("a")]):
            await asyncio.sleep(1.5 * machines.lease_s)
    assert (await machines.settled(*NAMES)).epoch == epoch


async def frozen(machines: MachinesUnderTest) -> None:
    async with machines.harm("frozen", touches=of_machine("c"), loses=["c"]):
        with machines.host("c").frozen():
            await machines.settled("a", "b")
            await asyncio.sleep(2 * machines.lease_s)
        await machines.settled(*NAMES)


SHORT = (
    Scenario("joins and leaves", joins_and_leaves),
    Scenario("killed", killed),
    Scenario("cut off from etcd", cut_off_from_etcd),
    Scenario("cut one way between machines", cut_one_way_between_machines),
    Scenario("frozen", frozen),
    Scenario("rolled", rolled),
)
