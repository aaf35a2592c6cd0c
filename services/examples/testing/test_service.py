"""The service runs in the test's own process, without ports, on a clock that moves when the test says so."""

from collections.abc import Callable
from random import Random
from typing import Any

import onelane

from services.examples.testing.service import FORGET_S, Dice
from services.examples.testing.v1.testing_pb2 import RollRequest
from services.examples.testing.v1.testing_pb2_grpc import DiceStub

SEED = 6


class SeededDice(Dice):
    """The service with known random numbers. A cluster makes each service itself, so a subclass hands them in."""

    def __init__(self, shard: onelane.Shard) -> None:
        super().__init__(shard, Random(SEED))


async def test_a_table_counts_the_rolls_of_the_last_minute(onelane_cluster: Callable[..., Any]) -> None:
    async with onelane_cluster(Dice, shards=3) as cluster:
        dice = cluster.stub(DiceStub)
        assert [(await dice.Roll(RollRequest(table="red"))).rolls for _ in range(2)] == [1, 2]
        assert (await dice.Roll(RollRequest(table="blue"))).rolls == 1
        await cluster.advance(FORGET_S)
        assert (await dice.Roll(RollRequest(table="red"))).rolls == 1


async def test_points_are_the_random_numbers_of_one_to_six(onelane_cluster: Callable[..., Any]) -> None:
    expected = Random(SEED)
    async with onelane_cluster(SeededDice) as cluster:
        dice = cluster.stub(DiceStub)
        points = [(await dice.Roll(RollRequest(table="red"))).points for _ in range(5)]
    assert points == [expected.randint(1, 6) for _ in range(5)]


async def test_a_shard_that_dies_forgets_its_tables_alone(onelane_cluster: Callable[..., Any]) -> None:
    async with onelane_cluster(Dice, shards=3) as cluster:
        dice = cluster.stub(DiceStub)
        tables = {cluster.owner_of(table): table for table in map(str, range(100))}  # One table of each shard.
        for table in tables.values():
            await dice.Roll(RollRequest(table=table))
        await cluster.crash(0)
        rolls = [(await dice.Roll(RollRequest(table=tables[shard]), wait_for_ready=True)).rolls for shard in range(3)]
    assert rolls == [1, 2, 2]
