"""Machines as hosts find each other by a real etcd, keep state in a real PostgreSQL, and are reached by the tests."""

from collections.abc import Iterator
from typing import Any

import grpc.aio
import pytest

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.namespaces.machines import PORT, Cluster, Machine, new_cluster
from tests.running_app import NEVER_LATE, descendants, eventually

pytestmark = pytest.mark.slow
KEYS = [f"k{number}" for number in range(48)]
"""So many that each machine has some, at whatever addresses."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with new_cluster(tmp_path_factory.mktemp("cluster"), lease_s=6, etcd_members=3, with_postgres=True) as cluster:
        yield cluster


def kept_app(cluster: Cluster) -> str:
    assert cluster.postgres is not None
    return f"""
    [apps.kept]
    services = ["tests.state.kept_service:Kept"]
    listen = "{{address}}:{PORT}"
    shards = 1
    {NEVER_LATE}
    [apps.kept.state]
    store = "postgresql"
    dsn = "{cluster.postgres.network_dsn}"
    """


async def counts(machine: Machine) -> dict[str, tuple[str, int]]:
    """Key → the shard that has counted one more for it, and the count."""
    async with grpc.aio.insecure_channel(machine.address()) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        replies = {key: await stub.Unary(EchoRequest(key=key), timeout=BOUND_S, wait_for_ready=True) for key in KEYS}
    return {key: (reply.shard, reply.seen) for key, reply in replies.items()}


async def test_machines_as_hosts_share_keys_by_links_and_state_by_postgresql(cluster: Cluster) -> None:
    toml = kept_app(cluster)
    with cluster.up("a", toml) as a, cluster.up("b", toml) as b:
        await eventually(lambda: len({machine.app.status()["apps"]["kept"]["epoch"] for machine in (a, b)}) == 1)
        # So its loss is that of all of them. Its fork server and its shard are two.
        await eventually(lambda: len(descendants(a.app.process.pid) & set(a.host.pids)) >= 2)
        await eventually(lambda: descendants(a.app.process.pid) <= set(a.host.pids))
        by_a, by_b = await counts(a), await counts(b)
    assert {shard for shard, _ in by_a.values()} == {"a/kept-0", "b/kept-0"}
    assert by_b == {key: (shard, count + 1) for key, (shard, count) in by_a.items()}
    # A guard of processes that have no parent any more may take a moment longer.
    await eventually(lambda: a.host.pids == b.host.pids == [])
