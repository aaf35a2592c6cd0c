"""Machines with scripted lives on a store and a time of a test's own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from onelane.cluster.machines import ClusterKeys, MachineRecord
from onelane.supervisor.machine import Machine

from tests.cluster.coordination.memory import MemoryCoordination
from tests.supervisor.scripted_lives import ScriptedLives, ScriptedTime, rest

KEYS = ClusterKeys("arena")
A = MachineRecord(name="a", advertise="10.0.0.11", release="0.1.0", lease_s=5.0, start="a-1", settings={"lobby": "d"})
B = replace(A, name="b", advertise="10.0.0.12", start="b-1")


class Cluster:
    """Machines on one store."""

    def __init__(self) -> None:
        self.store = MemoryCoordination()
        self.time = ScriptedTime(self.store)
        self.lives: dict[str, ScriptedLives] = {}

    @asynccontextmanager
    async def running(self, record: MachineRecord) -> AsyncIterator[Machine]:
        machine = self.machine(record)
        running = asyncio.ensure_future(machine.run())
        await rest()
        try:
            yield machine
        finally:
            running.cancel()
            await asyncio.wait([running])

    def machine(self, record: MachineRecord) -> Machine:
        lives = self.lives[record.start] = ScriptedLives()
        time = self.time
        return Machine(self.store, KEYS, record, lives, now=time.now, sleep_until=time.sleep_until)

    def serving(self, record: MachineRecord) -> list[int]:
        return self.lives[record.start].serving(self.time.now())

    async def names(self) -> list[str]:
        entries = (await self.store.read(KEYS.machines)).entries
        return sorted(key.removeprefix(KEYS.machines) for key in entries)
