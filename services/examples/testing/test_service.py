"""The service in this process, without ports, on a clock that moves when the test says so."""

from collections.abc import Callable
from typing import Any

from services.examples.testing.service import FORGET_S
from services.examples.testing.v1.testing_pb2 import RollRequest
from services.examples.testing.v1.testing_pb2_grpc import DiceStub


async def test_a_table_counts_the_rolls_of_the_last_minute(onelane_cluster: Callable[..., Any]) -> None:
    async with onelane_cluster("services.examples.testing.service:Dice", shards=3) as cluster:
        dice = cluster.stub(DiceStub)
        assert [(await dice.Roll(RollRequest(table="red"))).rolls for _ in range(2)] == [1, 2]
        assert (await dice.Roll(RollRequest(table="blue"))).rolls == 1
        await cluster.advance(FORGET_S)
        assert (await dice.Roll(RollRequest(table="red"))).rolls == 1


async def test_a_roll_is_one_to_six_points(onelane_cluster: Callable[..., Any]) -> None:
    async with onelane_cluster("services.examples.testing.service:Dice") as cluster:
        dice = cluster.stub(DiceStub)
        points = {(await dice.Roll(RollRequest(table=str(number)))).points for number in range(100)}
    assert points <= {1, 2, 3, 4, 5, 6}
