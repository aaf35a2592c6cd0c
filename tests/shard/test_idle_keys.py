"""Entries that nobody uses are forgotten, on disk too."""

from time import time
from typing import Any

import onelane
import pytest
from onelane.errors import BadService
from onelane.state.keyed import KeyedDicts
from onelane.telemetry.stats import Stats
from onelane.testing import Cluster

from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest

KEPT_S = 1e9


class Forgetting(echo_pb2_grpc.EchoServicer):
    """Counts in three dicts: one is forgotten soon, one late, one never."""

    def __init__(self, shard: onelane.Shard) -> None:
        self.dicts = [
            shard.keyed("soon", int, durable=True, idle_s=1e-6, max_resident=1),
            shard.keyed("late", int, durable=True, idle_s=KEPT_S),
            shard.keyed("never", int, durable=True),
        ]

    async def Unary(self, request: EchoRequest, context: Any) -> EchoReply:
        for counts in self.dicts:
            counts[request.key] = counts.get(request.key, 0) + 1
        return EchoReply(text=" ".join(str(counts[request.key]) for counts in self.dicts))

    async def Plain(self, request: EchoRequest, context: Any) -> EchoReply:
        """Changes nothing."""
        return EchoReply()


async def count(cluster: Cluster, key: str) -> str:
    stub: Any = cluster.stub(echo_pb2_grpc.EchoStub)
    return str((await stub.Unary(EchoRequest(key=key))).text)


async def until_forgotten(cluster: Cluster, *keys: str) -> None:
    """Let the checks run until the entries of the first dict are gone."""
    kind: Any = Forgetting
    state = cluster._shards(None)[0].lifecycle.parts.shard.durable_state
    assert state is not None
    await state.idle_keys.check()
    assert not set(cluster.service(kind, shard=0).dicts[0]) & {*keys}


async def test_an_entry_that_is_idle_is_forgotten_and_the_others_of_its_key_stay() -> None:
    async with Cluster(Forgetting, shards=1) as cluster:
        assert [await count(cluster, "ä /7") for _ in range(2)] == ["1 1 1", "2 2 2"]
        await until_forgotten(cluster, "ä /7")
        assert await count(cluster, "ä /7") == "1 3 3"
        await until_forgotten(cluster, "ä /7")
        await cluster.crash(0)
        assert await count(cluster, "ä /7") == "1 4 4"


async def test_keys_that_are_not_in_memory_are_forgotten_too() -> None:
    async with Cluster(Forgetting, shards=1) as cluster:
        for key in ("a", "b", "c"):
            await count(cluster, key)
        await until_forgotten(cluster)
        assert [await count(cluster, key) for key in ("a", "b", "c")] == ["1 2 2"] * 3


async def test_an_entry_that_is_read_is_not_idle() -> None:
    """The store knows only when it was loaded and written."""
    async with Cluster(Forgetting, shards=1) as cluster:
        await count(cluster, "k")
        written = time()
        stub: Any = cluster.stub(echo_pb2_grpc.EchoStub)
        await stub.Plain(EchoRequest(key="k"))
        state = cluster._shards(None)[0].lifecycle.parts.shard.durable_state
        assert state is not None
        await state.idle_keys._forget_idle("never", written)
        assert await count(cluster, "k") == "2 2 2"
        await state.idle_keys._forget_idle("never", time())
        assert await count(cluster, "k") == "3 3 1"


async def test_the_shard_checks_by_itself() -> None:
    async with Cluster(Forgetting, shards=1) as cluster:
        await count(cluster, "k")
        kind: Any = Forgetting
        for _ in range(200):
            await cluster.advance(1)
            if not cluster.service(kind, shard=0).dicts[0]:
                break
        assert await count(cluster, "k") == "1 2 2"


@pytest.mark.parametrize(
    "arguments",
    [{"idle_s": 1.0}, {"max_resident": 5}, {"durable": True, "idle_s": 0.0}, {"durable": True, "max_resident": 0}],
    ids=str,
)
def test_bounds_that_cannot_be_are_refused_by_name(arguments: dict[str, Any]) -> None:
    with pytest.raises(BadService, match="keyed 'bad'"):
        KeyedDicts("a-0", Stats()).declare("bad", int, **arguments)
