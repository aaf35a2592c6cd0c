"""Real processes under a lease at a real etcd: the supervisor stopped, and etcd away."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.cluster.coordination.address import etcd_address
from onelane.cluster.coordination.etcd import EtcdStore
from onelane.cluster.machines import ClusterKeys, ClusterView, MachineRecord
from onelane.core.cluster_settings import ClusterSettings

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.etcd import EtcdServer, etcd
from tests.running_app import RunningApp, echo, eventually, run_to_end, running
from tests.supervisor.cluster_variables import environment_of, settings_of

LEASE_S = 2
PATIENT_S = 30
"""The lease of a machine whose requests may take their time: a sixth of it."""
SLOW_ELECTIONS = "--election-timeout=4000"
"""With it etcd grants six seconds at least: fences close soon, and on a busy machine no lease is lost for that."""
REFUSED = "its machine's lease was not renewed in time"


class LeasedApp:
    """An echo app on the only machine of a cluster, and the cluster's etcd."""

    def __init__(self, app: RunningApp, server: EtcdServer, settings: ClusterSettings) -> None:
        self.app, self.server, self.settings = app, server, settings
        self._address = app.listen["echo"]

    def give_up(self) -> None:
        """Have etcd end the lease, and remove all that is under it, as it does by itself some seconds later."""
        for lease in self.server.ask("lease/leases", "{}")["leases"]:
            self.server.ask("lease/revoke", json.dumps({"ID": lease["ID"]}))

    @asynccontextmanager
    async def client(self) -> AsyncIterator["Client"]:
        async with grpc.aio.insecure_channel(self._address) as channel:
            yield Client(echo_pb2_grpc.EchoStub(channel))


class Client:
    """Calls one key, by a stock client that repeats nothing."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub

    async def seen(self) -> int:
        """How many calls the key has had, once one is answered."""
        while True:
            try:
                return int((await self._stub.Unary(EchoRequest(key="k"), timeout=BOUND_S, wait_for_ready=True)).seen)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise

    async def until_refused(self) -> None:
        """Call until the fence closes; what is answered before is no fault."""
        while True:
            try:
                await self._stub.Unary(EchoRequest(key="k"), timeout=BOUND_S, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE and REFUSED in (error.details() or ""):
                    return
                raise


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Meanwhile the process does nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def leased(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LeasedApp]:
    with etcd(SLOW_ELECTIONS) as server:
        settings = settings_of(server, machine="a", lease_s=LEASE_S)
        with running(tmp_path_factory.mktemp("leased"), echo(2), **environment_of(settings)) as app:
            yield LeasedApp(app, server, settings)


async def test_without_etcd_keys_are_served_until_the_fence_and_again_with_their_memory_once_it_is_back(
    leased: LeasedApp,
) -> None:
    async with leased.client() as client:
        pids = [shard["pid"] for shard in leased.app.shards()]
        before = await client.seen()
        leased.server.stop()
        try:
            await client.until_refused()
        finally:
            leased.server.start()
        assert await client.seen() > before
        assert [shard["pid"] for shard in leased.app.shards()] == pids


async def test_shards_whose_supervisor_is_stopped_serve_no_key_and_come_back_as_other_lives(leased: LeasedApp) -> None:
    async with leased.client() as client:
        await client.seen()
        pids = {shard["pid"] for shard in leased.app.shards()}
        restarts = [shard["restarts"] for shard in leased.app.shards()]
        with stopped(leased.app.process.pid):
            await client.until_refused()
            leased.give_up()
            # Another machine would own the keys from now on.
            await client.until_refused()
        await client.seen()
        # The other one may still be starting.
        await eventually(lambda: not pids & {shard["pid"] for shard in leased.app.shards()})
        assert [shard["restarts"] for shard in leased.app.shards()] == restarts


async def test_the_record_of_the_machine_names_the_lives_that_run(leased: LeasedApp) -> None:
    store = EtcdStore(etcd_address(leased.settings))
    keys = ClusterKeys(leased.settings.name)

    async def recorded() -> dict[str, int]:
        for record in ClusterView(keys, await store.read(keys.prefix)).machines():
            assert isinstance(record, MachineRecord)
            return {member.name: member.life for member in record.apps.get("echo", ())}
        return {}

    async with asyncio.timeout(60):
        while {*(before := await recorded())} != {"a/echo-0", "a/echo-1"}:  # noqa: ASYNC110 - it is in another process
            await asyncio.sleep(0.01)
        pid = leased.app.shards()[0]["pid"]
        assert pid
        os.kill(pid, signal.SIGKILL)
        while (after := await recorded()).get("a/echo-0", 0) <= before["a/echo-0"]:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
    assert after["a/echo-1"] >= before["a/echo-1"]
    await store.close()


async def test_a_machine_that_does_not_fit_ends_with_one_sentence_and_disturbs_nobody(
    leased: LeasedApp, tmp_path: Path
) -> None:
    environment = environment_of(settings_of(leased.server, machine="b", lease_s=PATIENT_S))
    async with leased.client() as client:
        before = await client.seen()
        ended = await asyncio.to_thread(partial(run_to_end, tmp_path, echo(1, "points = 64"), **environment))
        assert ended.returncode != 0
        assert "cannot join the cluster 'arena': app 'echo' is set up otherwise on machine 'a'" in ended.stderr
        assert "Traceback" not in ended.stderr
        assert await client.seen() > before


async def test_a_machine_that_meets_another_of_its_name_or_whose_user_etcd_does_not_know_says_so_and_disturbs_nobody(
    leased: LeasedApp, tmp_path: Path
) -> None:
    settings = settings_of(leased.server, machine="a", lease_s=PATIENT_S)
    async with leased.client() as client:
        before = await client.seen()
        ended = await asyncio.to_thread(partial(run_to_end, tmp_path, echo(1), **environment_of(settings)))
        assert (ended.returncode != 0, "Traceback" in ended.stderr) == (True, False)
        assert "a machine 'a' is there already, at 127.0.0.1: set `machine` to another name" in ended.stderr
        others = environment_of(replace(settings, machine="b"))
        others |= {"ONELANE_CLUSTER__ETCD_USER": "u", "ONELANE_CLUSTER__ETCD_PASSWORD": "swordfish"}
        ended = await asyncio.to_thread(partial(run_to_end, tmp_path, echo(1), **others))
        assert (ended.returncode != 0, "Traceback" in ended.stderr) == (True, False)
        assert "this etcd has no users: expected none" in ended.stderr
        assert await client.seen() > before
