"""What a StatefulSet controller does with its pods, and who is behind a Service: in order, one after another."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.kubernetes.manifests import PodTemplate
from tests.kubernetes.pods import Pod

LOG_END = 4000
"""Characters of a log that are shown where a test has failed."""


class StatefulSet:
    """Pods NAME-0 to NAME-(n-1); the next one is made once the one before is ready, and replaced from the last on."""

    def __init__(self, name: str, template: PodTemplate, tasks: asyncio.TaskGroup) -> None:
        self.name = name
        self.template = template
        self.pods: list[Pod] = []
        self.past: list[Pod] = []
        """Those that were deleted."""
        self._tasks = tasks
        self._endpoints: list[tuple[float, tuple[str, ...]]] = [(0.0, ())]

    async def scale(self, replicas: int) -> None:
        while len(self.pods) < replicas:
            pod = self._make(len(self.pods))
            self.pods.append(pod)
            await until(pod, lambda pod: pod.is_ready)
        while len(self.pods) > replicas:
            await self._delete(self.pods[-1])
            self.pods.pop()

    async def roll(self, template: PodTemplate) -> None:
        """A rolling update; it waits for each pod, for ever if need be."""
        self.template = template
        for index in reversed(range(len(self.pods))):
            await self.replace(index)

    async def replace(self, index: int) -> None:
        await self._delete(self.pods[index])
        self.pods[index] = self._make(index)
        await until(self.pods[index], lambda pod: pod.is_ready)

    async def delete_all(self) -> None:
        """All at once, as where the namespace is deleted."""
        await asyncio.gather(*map(self._delete, self.pods))
        self.pods.clear()

    def endpoints(self, age_s: float = 0.0) -> tuple[str, ...]:
        """The addresses behind a Service, as of some seconds ago: of pods that are ready and are not deleted."""
        now = tuple(pod.ip for pod in self.pods if pod.is_ready and not pod.is_terminating)
        if now != self._endpoints[-1][1]:
            self._endpoints.append((time.monotonic(), now))
        before = time.monotonic() - age_s
        return next(addresses for at, addresses in reversed(self._endpoints) if at <= before)

    def _make(self, index: int) -> Pod:
        pod = Pod(f"{self.name}-{index}", self.template)
        self._tasks.create_task(pod.run())
        return pod

    async def _delete(self, pod: Pod) -> None:
        self.past.append(pod)
        await pod.delete()


async def until(pod: Pod, condition: Callable[[Pod], bool]) -> None:
    while not condition(pod):
        await pod.changed.wait()


@asynccontextmanager
async def stateful_set(name: str, template: PodTemplate, replicas: int) -> AsyncIterator[StatefulSet]:
    """All of its pods are ready; gone at the end, whatever happens."""
    async with asyncio.TaskGroup() as tasks:
        owner = StatefulSet(name, template, tasks)
        try:
            await owner.scale(replicas)
            yield owner
        except BaseException:
            # The report of a test shows its output.
            for pod in owner.pods:
                sys.stdout.write(f"{pod.name}: {', '.join(pod.events)}\n{pod.log[-LOG_END:]}\n")
            # Not by TERM: what has failed may hold the pods.
            owner.template = template
            for pod in owner.pods:
                pod.template = pod.template.with_grace(0).with_prestop("true")
            raise
        finally:
            await owner.delete_all()
            for pod in owner.past:
                pod.remove()
