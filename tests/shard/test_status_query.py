"""Questions for the state of all shards, answered by number."""

import asyncio
from typing import Any

from onelane.cluster.control import QueueControl
from onelane.shard.status_query import StatusQuery
from onelane.v1 import control_pb2


async def number_asked(supervisor_end: Any) -> int:
    message = await supervisor_end.receive()
    number: int = message.ask_status
    return number


async def test_answers_reach_their_own_question_in_whatever_order_they_come() -> None:
    supervisor_end, shard_end = QueueControl.pair()
    query = StatusQuery(shard_end)
    questions = [asyncio.create_task(query.ask()) for _ in range(2)]
    numbers = [await number_asked(supervisor_end) for _ in questions]
    for number in reversed(numbers):
        query.answered(control_pb2.StatusAnswer(number=number, json=f"state {number}"))
    assert [await question for question in questions] == [f"state {number}" for number in numbers]


async def test_an_answer_to_a_cancelled_or_unknown_question_is_ignored() -> None:
    supervisor_end, shard_end = QueueControl.pair()
    query = StatusQuery(shard_end)
    question = asyncio.create_task(query.ask())
    number = await number_asked(supervisor_end)
    question.cancel()
    query.answered(control_pb2.StatusAnswer(number=number))
    await asyncio.gather(question, return_exceptions=True)
    query.answered(control_pb2.StatusAnswer(number=number))
    assert question.cancelled()
    assert query._pending == {}
