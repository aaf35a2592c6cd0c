"""What etcd has of the app while something happens to its cluster, by a watch of the benchmark's own."""

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

from onelane.cluster.coordination.address import etcd_address
from onelane.cluster.coordination.etcd import EtcdStore
from onelane.cluster.machines import ClusterKeys, ClusterView, MachineRecord
from onelane.cluster.placements import AppEntry, entry_of
from onelane.core.cluster_settings import ClusterSettings

from tests.bench.cluster import APP

BOUND_S = 60.0
"""The longest that anything is waited for."""


@dataclass(frozen=True, slots=True)
class Step:
    """The store after a write."""

    at_s: float
    """When the watch has shown it, since before the act."""
    view: ClusterView

    @property
    def entry(self) -> AppEntry:
        return entry_of(self.view.snapshot.entries[self.view.keys.app(APP)].value, APP)

    def placed(self, machine: str) -> int:
        """The shards of a machine that are to own keys, by its record."""
        records = (record for record in self.view.machines() if isinstance(record, MachineRecord))
        return sum(len(record.parts[APP].placed) for record in records if record.name == machine)


async def steps_of(
    settings: ClusterSettings, act: Callable[[], object], is_last: Callable[[Step, Step], bool]
) -> list[Step]:
    """What is written from an act on, which may block. is_last: of a step, and the one before the act."""
    keys, store = ClusterKeys(settings.name), EtcdStore(etcd_address(settings))
    try:
        first = Step(0.0, ClusterView(keys, await store.read(keys.prefix)))
        steps, began = [first], time.perf_counter()
        acting = asyncio.create_task(asyncio.to_thread(act))
        async with asyncio.timeout(BOUND_S), aclosing(store.watch(keys.prefix, first.view.snapshot.revision)) as news:
            async for changes in news:
                steps.append(Step(time.perf_counter() - began, steps[-1].view.after(changes)))
                if is_last(steps[-1], first):
                    break
        await acting
    finally:
        await store.close()
    return steps


def is_committed(step: Step, first: Step) -> bool:
    """The change of placement that the act has caused is over."""
    return step.entry.following is None and step.entry.placement.epoch > first.entry.placement.epoch


async def coordinator_of(settings: ClusterSettings) -> str:
    """The name of the machine that coordinates, right after it has renewed its lease: so the lease is as long as it
    may be."""
    keys, store = ClusterKeys(settings.name), EtcdStore(etcd_address(settings))
    try:
        candidate = ClusterView(keys, await store.read(keys.prefix)).coordinator()
        assert candidate is not None
        left_s = await store.remaining(candidate.lease_id)
        while (now_s := await store.remaining(candidate.lease_id)) <= left_s:
            left_s = now_s
            await asyncio.sleep(0.01)
        return candidate.value.decode()
    finally:
        await store.close()
