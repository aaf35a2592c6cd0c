"""Health checks answer for the machine: ready is a shard whose placement has lives of its own machine."""

from pathlib import Path
from typing import Any

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from onelane.cluster.control import placement_to_proto
from onelane.core.placement import Member, Placement

from tests.running_app import eventually
from tests.shard.test_lifecycle import RunningShard, serving

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
ELSEWHERE = Member("b/echo-0", "10.0.0.12:50061", "b@10.0.0.12:50100")


async def answers(shard: RunningShard, epoch: int, *members: Member) -> list[Any]:
    """What health checks are told, of the whole and of one service, once a placement has come."""
    await shard.order(placement=placement_to_proto(Placement(epoch, members)))
    await eventually(lambda: shard.lifecycle.parts.lane.placement.epoch == epoch)
    return [await check(shard, name) for name in ("", "echo.v1.Echo")]


async def check(shard: RunningShard, name: str) -> Any:
    handler: Any = shard.lifecycle.parts.lane.entries["/grpc.health.v1.Health/Check"].method.handler
    return (await handler(HealthCheckRequest(service=name), None)).status


async def test_a_machine_is_ready_while_the_placement_has_a_life_of_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as shard:
        (own,) = shard.lifecycle.parts.lane.placement.members
        sibling = Member("echo-1", "127.0.0.1:50062", f"{tmp_path}/echo-1")
        assert await answers(shard, 2, own, ELSEWHERE) == [SERVING] * 2
        assert await answers(shard, 3, ELSEWHERE) == [NOT_SERVING] * 2
        # The shard itself owns nothing; the machine does, and any of its shards may be asked.
        assert await answers(shard, 4, sibling, ELSEWHERE) == [SERVING] * 2


async def test_a_shard_that_drains_is_not_ready_whatever_placement_comes(tmp_path: Path) -> None:
    async with serving(tmp_path) as shard:
        (own,) = shard.lifecycle.parts.lane.placement.members
        await shard.order(drain={"grace_s": 0})
        await shard.next_message("drained")
        assert await answers(shard, 2, own, ELSEWHERE) == [NOT_SERVING] * 2
        assert await answers(shard, 3, ELSEWHERE) == [NOT_SERVING] * 2
        assert await answers(shard, 4, own) == [NOT_SERVING] * 2
