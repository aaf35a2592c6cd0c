"""Two failures at once, of two machines, or of a machine and what machines stand on: which ones is the seed's choice.

Two machines of three may be given up; the third serves all keys then, and no call of its own fails.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from tests.chaos import store_failures
from tests.chaos.cluster import NAMES, MachinesUnderTest, Touches, everything, of_machine, sent_to

Stands = Callable[[MachinesUnderTest, str], AbstractAsyncContextManager[None]]
GIVEN_UP, GONE, STAYS = "given up", "gone", "stays"
"""What becomes of the machine that is harmed: it has left by itself where it is gone."""


@dataclass(frozen=True)
class StandingFailure:
    """Something that stands for a while."""

    name: str
    stands: Stands
    """While it is entered, of this machine."""
    touches: Callable[[str], Touches]
    """Of this machine: which calls may fail."""
    machine: str = STAYS
    lets_keys_move: bool = True
    """Else no change of the placement ends meanwhile, so none is waited for."""
    lets_machines_start: bool = True
    """Else it ends first."""


@asynccontextmanager
async def _killed(machines: MachinesUnderTest, victim: str) -> AsyncIterator[None]:
    await machines.kill(victim)
    yield
    await machines.start(victim)


@asynccontextmanager
async def _frozen(machines: MachinesUnderTest, victim: str) -> AsyncIterator[None]:
    with machines.host(victim).frozen():
        yield


@asynccontextmanager
async def _left(machines: MachinesUnderTest, victim: str) -> AsyncIterator[None]:
    await machines.leave(victim)
    yield
    await machines.start(victim)


@asynccontextmanager
async def _cut_off_from_etcd(machines: MachinesUnderTest, victim: str) -> AsyncIterator[None]:
    host, etcd = [machines.host(victim)], machines.etcd_hosts
    with machines.cut_one_way(host, etcd), machines.cut_one_way(etcd, host):
        yield


@asynccontextmanager
async def _does_not_hear_etcd(machines: MachinesUnderTest, victim: str) -> AsyncIterator[None]:
    with machines.cut_one_way(machines.etcd_hosts, [machines.host(victim)]):
        yield


@asynccontextmanager
async def _cut_off_from_others(machines: MachinesUnderTest, victim: str) -> AsyncIterator[None]:
    host, others = [machines.host(victim)], [machines.host(name) for name in NAMES if name != victim]
    with machines.cut_one_way(host, others), machines.cut_one_way(others, host):
        yield


@asynccontextmanager
async def _etcd_without_its_leader(machines: MachinesUnderTest, _: str) -> AsyncIterator[None]:
    leader = store_failures.leader_of(machines)
    leader.stop()
    yield
    await asyncio.to_thread(leader.start)


@asynccontextmanager
async def _etcd_leader_in_the_minority(machines: MachinesUnderTest, _: str) -> AsyncIterator[None]:
    with store_failures.cut_off(machines, [store_failures.leader_of(machines)]):
        yield


def _all(_: str) -> Touches:
    return everything


def _none(_: str) -> Touches:
    return lambda entry, owner: False


OF_MACHINES = (
    StandingFailure("killed", _killed, of_machine, GIVEN_UP),
    StandingFailure("frozen", _frozen, of_machine, GIVEN_UP),
    StandingFailure("cut off from etcd", _cut_off_from_etcd, of_machine, GIVEN_UP),
    StandingFailure("does not hear etcd", _does_not_hear_etcd, of_machine, GIVEN_UP),
    StandingFailure("leaves", _left, sent_to, GONE),
    # All lives of a change tell each other that they are done with it.
    StandingFailure(
        "cut off from the others", _cut_off_from_others, _all, lets_keys_move=False, lets_machines_start=False
    ),
)
OF_STORES = (
    StandingFailure("etcd loses its leader", _etcd_without_its_leader, _none),
    StandingFailure("etcd's leader in the minority", _etcd_leader_in_the_minority, _none),
    StandingFailure(
        "PostgreSQL dies",
        lambda machines, _: store_failures.without_postgres(machines),
        _all,
        lets_machines_start=False,
    ),
)


async def two_machines(machines: MachinesUnderTest) -> None:
    await _both(machines, *machines.rng.sample(OF_MACHINES, 2))


async def machine_and_store(machines: MachinesUnderTest) -> None:
    of_machine, of_store = machines.rng.choice(OF_MACHINES), machines.rng.choice(OF_STORES)
    await _both(machines, *machines.rng.sample([of_machine, of_store], 2))


async def _both(machines: MachinesUnderTest, *failures: StandingFailure) -> None:
    """One after another, by up to a lease; and at the end the one or the other first."""
    # Not the first one: clients that know several addresses call that.
    victims = machines.rng.sample(machines.names[1:], 2)
    owners = await machines.owners()
    pairs = [*zip(failures, victims, strict=True)]
    away = {victim for failure, victim in pairs if failure.machine != STAYS}
    is_given_up = any(failure.machine == GIVEN_UP for failure in failures)
    machines.record.notes.append(", ".join(f"{failure.name} ({victim})" for failure, victim in pairs))
    async with AsyncExitStack() as harms:
        # What has left for a machine that is given up then, is lost with it.
        loss = machines.harm("away", touches=_none(""), loses=away if is_given_up else (), owners=owners)
        await harms.enter_async_context(loss)
        for failure, victim in pairs:
            touches = of_machine if is_given_up and failure.machine == GONE else failure.touches
            harm = machines.harm(failure.name, touches=touches(victim), owners=owners)
            await harms.enter_async_context(harm)
        standing: list[tuple[StandingFailure, AsyncExitStack]] = []
        for failure, victim in pairs:
            stack = AsyncExitStack()
            await stack.enter_async_context(failure.stands(machines, victim))
            standing.append((failure, stack))
            await asyncio.sleep(machines.rng.random() * machines.lease_s)
        if all(failure.lets_keys_move for failure in failures):
            await machines.settled(*(name for name in NAMES if name not in away))
        await asyncio.sleep(machines.lease_s)
        machines.rng.shuffle(standing)
        for _, stack in sorted(standing, key=lambda pair: pair[0].lets_machines_start):
            await stack.aclose()
        await machines.settled(*NAMES)
        await machines.answered()
