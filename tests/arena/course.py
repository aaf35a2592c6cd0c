"""What becomes of the machines of the arena while players play: one is killed, one comes, one leaves, one comes."""

import asyncio
import itertools
import random
import string
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import anyio
from onelane.core.placement import Member, Placement

from services.arena.game import Game
from services.arena.ledger import Crash
from services.arena.shake import WITH_ROOMS
from tests.arena.machines import Machine, MachineFault, Site

FIRST = 3
"""Machines at the start."""
PAUSE_S = (0.5, 1.5)
"""Bounds of the time between two steps."""
AT_LEAST = 2
"""Steps of a course, also where its time is over before: a machine is killed, and one added."""
PATIENCE_S = 60.0
"""A machine that is not given up within that time beyond its lease, or a change that is not over, is a fault."""
ASKED_EVERY_S = 0.1


class Course:
    """See the module."""

    def __init__(self, site: Site, game: Game, seconds: float | None, say: Callable[[str], object]) -> None:
        """seconds: None until the game is ended by a signal. say: is told what happens, in sentences."""
        self._site = site
        self._game = game
        self._seconds = seconds
        self._say = say
        self._rng = random.Random(game.seed)
        self._names = machine_names()
        self.machines: dict[str, Machine] = {}
        """Those that run, by name."""

    async def begin(self) -> None:
        """Start the first machines.

        Raises:
            MachineFault: one did not start.
        """
        machines = [await self._new_machine() for _ in range(FIRST)]
        await self._site.certify(*(machine.name for machine in machines))
        await asyncio.gather(*(machine.start() for machine in machines))
        self.machines |= {machine.name: machine for machine in machines}
        self._say(f"{names(self.machines)} have joined")

    async def run(self) -> None:
        """Take step after step until the time is over or the game has ended, which then ends."""
        try:
            await self._take_steps()
        except (MachineFault, OSError) as fault:
            self._game.fault = str(fault)
        finally:
            self._game.until.set()

    async def end(self) -> None:
        """Have all machines leave at once.

        Raises:
            MachineFault: one of them did not end well.
        """
        leaving = list(self.machines.values())
        self.machines = {}
        await asyncio.gather(*(machine.leave() for machine in leaving))

    def addresses(self) -> list[str]:
        """Of the machines, in a random order."""
        running = list(self.machines.values())
        return [machine.host.address for machine in self._rng.sample(running, len(running))]

    async def _take_steps(self) -> None:
        over_at = None if self._seconds is None else time.monotonic() + self._seconds
        steps = itertools.cycle([self._kill, self._add, self._leave, self._add])
        for number, step in enumerate(steps):
            with anyio.move_on_after(self._rng.uniform(*PAUSE_S)):
                await self._game.until.wait()
                return
            if number >= AT_LEAST and over_at is not None and time.monotonic() > over_at:
                return
            for machine in self.machines.values():
                machine.check()
            await step()

    async def _kill(self) -> None:
        before, failed = await self._placement(), self._failed()
        victim = self.machines.pop(self._rng.choice(sorted(self.machines)))
        crashes = [Crash(m.name, [before]) for m in before.members if m.name.startswith(f"{victim.name}/")]
        self._game.ledger.crashes += crashes
        began = time.monotonic()
        self._say(f"{victim.name} is killed: all its processes at one moment")
        await victim.kill()
        self._game.ledger.crashes_over = len(self._game.ledger.crashes)
        await self._until(lambda cluster: is_given_up(cluster, victim.name), f"{victim.name} is not given up")
        after_s = time.monotonic() - began
        after = await self._placement()
        for crash in crashes:
            crash.placements.append(after)
        calls = self._failed() - failed
        self._say(
            f"{victim.name} was given up after {after_s:.1f} s, its keys are served by {names(self.machines)}; "
            f"{calls} calls failed meanwhile"
        )

    async def _add(self) -> None:
        failed, began = self._failed(), time.monotonic()
        handed_over = await self._keys_handed_over()
        machine = await self._new_machine()
        self._say(f"{machine.name} is started")
        await self._site.certify(machine.name)
        await machine.start()
        others = dict(self.machines)
        self.machines[machine.name] = machine
        await self._until(is_settled, f"the change to {machine.name} is not over")
        keys = await self._keys_handed_over(others) - handed_over
        self._say(
            f"{machine.name} has joined after {time.monotonic() - began:.1f} s: {keys} keys went to it with their "
            f"state; {self._failed() - failed} calls failed meanwhile"
        )

    async def _leave(self) -> None:
        failed, began = self._failed(), time.monotonic()
        machine = self.machines[self._rng.choice(sorted(self.machines))]
        self._say(f"{machine.name} leaves, by SIGTERM")
        # Whom its name still stands for finds others there, as its ports close.
        del self.machines[machine.name]
        await machine.leave()
        await self._until(is_settled, f"the change from {machine.name} is not over")
        self._say(
            f"{machine.name} has left after {time.monotonic() - began:.1f} s, its keys are at {names(self.machines)} "
            f"with their state; {self._failed() - failed} calls failed meanwhile"
        )

    async def _new_machine(self) -> Machine:
        host = await asyncio.to_thread(self._site.network.host, next(self._names))
        return Machine(self._site, host)

    def _failed(self) -> int:
        return self._game.tally.errors.total()

    async def _keys_handed_over(self, machines: dict[str, Machine] | None = None) -> int:
        chosen = (self.machines if machines is None else machines).values()
        return sum(await asyncio.gather(*(machine.keys_handed_over() for machine in chosen)))

    async def _placement(self) -> Placement:
        """Of the rooms, while no change is under way."""
        cluster = await self._until(is_settled, "a change is not over")
        rows = [row for machine in cluster["machines"] for row in machine["apps"].get(WITH_ROOMS, ())]
        return Placement(1, tuple(Member(row["name"], row["address"], "") for row in rows if row["placed"]))

    async def _until(self, is_reached: Callable[[Any], bool], fault: str) -> Any:
        """The cluster, as a machine tells it, once it is so.

        Raises:
            MachineFault: it does not become so.
        """
        give_up_at = time.monotonic() + self._site.lease_s + PATIENCE_S
        while True:
            asked = self.machines[min(self.machines)]
            asked.check()
            cluster = (await asked.admin.status())["cluster"]
            if is_reached(cluster):
                return cluster
            if time.monotonic() > give_up_at:
                raise MachineFault(f"{fault}: {cluster}")
            await asyncio.sleep(ASKED_EVERY_S)


def machine_names() -> Iterator[str]:
    """a to z, then a2 to z2, and so on."""
    for number in itertools.count(1):
        yield from (f"{letter}{number if number > 1 else ''}" for letter in string.ascii_lowercase)


def names(machines: Sequence[str] | dict[str, Machine]) -> str:
    """As a sentence has them: `a, b and c`."""
    *others, last = sorted(machines)
    return f"{', '.join(others)} and {last}" if others else last


def is_settled(cluster: Any) -> bool:
    """Whether no placement changes, and every owner of keys runs."""
    return all(app["change"] is None and not app["unserved"] for app in cluster["apps"].values())


def is_given_up(cluster: Any, name: str) -> bool:
    """Whether the keys of a machine that has died have other owners."""
    states = {machine["name"]: machine["state"] for machine in cluster["machines"]}
    return is_settled(cluster) and states.get(name, "gone") == "gone"
