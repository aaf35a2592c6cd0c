"""The order of signals is real: pods as deploy/kubernetes/ has them are started, drained and replaced under calls.

Their commands, ports, variables, probes and seconds are read from the manifests; nothing of them is repeated here.
"""

import asyncio
import json
import os
import signal
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.echo.v1.echo_pb2 import EchoRequest
from tests.echo.v1.echo_pb2_grpc import EchoStub
from tests.kubernetes.manifests import PodTemplate, documents, one, pod_template
from tests.kubernetes.pods import SPEED, Pod
from tests.kubernetes.stateful_set import StatefulSet, stateful_set, until
from tests.running_app import eventually

pytestmark = pytest.mark.slow
STALE_S = 2.0
"""How long a proxy may call a pod that is deleted."""
PAUSE_S = 0.05
APP = "ONELANE_APPS__COUNTER__"
ECHO = {f"{APP}SERVICES": json.dumps(["tests.echo.service:Echo"]), f"{APP}MAX_LATE_S": "60", f"{APP}SHARDS": "1"}


@pytest.fixture(scope="module")
def replicas() -> int:
    return int(one(documents("cluster"), "StatefulSet")["spec"]["replicas"])


@pytest.fixture(scope="module")
def template() -> PodTemplate:
    """Of pods that are machines by themselves, of an app whose calls tests can hold."""
    template = pod_template(documents("cluster")).altered(**ECHO)
    return template.without("ONELANE_CLUSTER__").without_volume("links").without_volume("etcd")


@dataclass
class Clients:
    """Each call on a new connection, to an address that the Service has, or had STALE_S ago."""

    owner: StatefulSet
    port: int
    served: int = 0
    failed: list[str] = field(default_factory=list)
    seen: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Key → how many calls of it the app has counted, as each call was told."""

    async def run(self, key: str) -> None:
        ages = [0.0, STALE_S / SPEED]
        while True:
            ages.reverse()
            for address in self.owner.endpoints(ages[0])[-1:] or self.owner.endpoints()[:1]:
                await self.call(address, key)
            # Not as fast as possible: the machine is shared with what it calls.
            await asyncio.sleep(PAUSE_S)

    async def call(self, address: str, key: str) -> None:
        async with grpc.aio.insecure_channel(f"{address}:{self.port}") as channel:
            try:
                reply = await EchoStub(channel).Unary(EchoRequest(key=key))
            except grpc.aio.AioRpcError as error:
                self.failed.append(f"{address}: {error.code().name} {error.details()}")
            else:
                self.served += 1
                self.seen[key].append(reply.seen)


@asynccontextmanager
async def calling(owner: StatefulSet) -> AsyncIterator[Clients]:
    clients = Clients(owner, owner.template.port("grpc"))
    tasks = [asyncio.create_task(clients.run(f"key-{n}")) for n in range(2)]
    try:
        yield clients
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def held_call(pod: Pod) -> AsyncIterator[Any]:
    """A call that nobody lets end."""
    async with grpc.aio.insecure_channel(f"{pod.ip}:{pod.template.port('grpc')}") as channel:
        call = EchoStub(channel).Hold(EchoRequest(key="held"))
        # A call of the same client that is answered: the one before has come.
        await EchoStub(channel).Who(EchoRequest())
        yield call
        call.cancel()


async def test_pods_start_roll_and_end_in_order_and_no_call_fails(template: PodTemplate, replicas: int) -> None:
    async with stateful_set("onelane", template, replicas) as owner:
        first = list(owner.pods)
        assert [pod.events for pod in first] == [["start", "ready"]] * replicas
        async with calling(owner) as clients:
            await owner.roll(template.altered(A_NEW="RELEASE"))
            await owner.scale(1)
        assert clients.failed == []
        assert clients.served > replicas
        # The last first, then by the new template, then those that are not wanted any more.
        names = [pod.name for pod in owner.past]
        assert names == ["onelane-2", "onelane-1", "onelane-0", "onelane-2", "onelane-1"]
        ends = [pod.events[pod.events.index("delete") :] for pod in owner.past]
        assert ends == [["delete", "preStop 0", "TERM", "end 0"]] * len(ends)
        assert [pod.restarts for pod in owner.past] == [0] * len(ends)


async def test_a_call_that_does_not_end_holds_a_pod_no_longer_than_its_drain(template: PodTemplate) -> None:
    impatient = template.altered(**{f"{APP}DRAIN_S": "0.5"})
    async with stateful_set("onelane", impatient, 1) as owner:
        pod = owner.pods[0]
        async with held_call(pod) as call:
            await owner.replace(0)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert pod.events[-3:] == ["preStop 0", "TERM", "end 0"], pod.log
        assert owner.pods[0].is_ready


async def test_a_prestop_that_hangs_takes_the_grace_period_and_the_pod_is_replaced(template: PodTemplate) -> None:
    hanging = template.with_prestop("sleep", "100000").with_grace(1)
    async with stateful_set("onelane", hanging, 1) as owner:
        pod = owner.pods[0]
        await owner.replace(0)
        assert pod.events[2:5] == ["delete", "preStop cut off", "TERM"]
        assert owner.pods[0].is_ready


async def test_a_pod_that_never_gets_ready_stops_a_roll_and_harms_no_other(template: PodTemplate) -> None:
    async with stateful_set("onelane", template, 2) as owner:
        untouched = owner.pods[0]
        broken = template.altered(**{f"{APP}SERVICES": json.dumps(["tests.broken:Broken"])})
        rolling = asyncio.create_task(owner.roll(broken))
        before = owner.pods[1]
        await before.ended.wait()
        while owner.pods[1] is before:  # noqa: ASYNC110 - of another task, which has been woken
            await asyncio.sleep(0)
        await until(owner.pods[1], lambda pod: pod.restarts >= 1)
        assert "this service cannot be made" in owner.pods[1].log
        assert (owner.pods[1].is_ready, rolling.done()) == (False, False)
        async with calling(owner) as clients:
            await eventually(lambda: clients.served >= 10 or clients.failed)
        assert clients.failed == []
        assert (untouched.events, owner.endpoints()) == (["start", "ready"], (untouched.ip,))
        # As with a real one, which waits for the broken pod: the template is put right, and the pod deleted.
        rolling.cancel()
        await asyncio.gather(rolling, return_exceptions=True)
        owner.template = template
        await owner.replace(1)
        assert owner.endpoints() == (untouched.ip, owner.pods[1].ip)


async def test_a_supervisor_that_is_stopped_is_killed_by_its_liveness_and_started_anew(template: PodTemplate) -> None:
    impatient = template.with_grace(1)
    liveness = dict(template.container["livenessProbe"]) | {"timeoutSeconds": 1, "periodSeconds": 1}
    async with stateful_set("onelane", impatient.with_container(livenessProbe=liveness), 1) as owner:
        pod = owner.pods[0]
        assert pod.process is not None
        stopped = pod.process.pid
        os.kill(stopped, signal.SIGSTOP)
        await until(pod, lambda pod: pod.restarts >= 1 and pod.is_ready)
        assert pod.process.pid != stopped
        killed = [event for event in pod.events[pod.events.index("liveness failed") :] if event != "not ready"]
        assert killed[:6] == ["liveness failed", "preStop cut off", "TERM", "KILL", "end -9", "restart"]
