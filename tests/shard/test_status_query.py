"""Questions for the state of all shards, answered by number."""

import asyncio
from typing import Any

import pytest
from onelane.cluster.control import QueueControl
from onelane.errors import Transient
from onelane.shard import status_query
from onelane.shard.status_query import FRESH_S, StatusQuery
from onelane.v1 import control_pb2


async def number_asked(supervisor_end: Any) -> int:
    message = await supervisor_end.receive()
    number: int = message.ask_status
    return number


async def test_a_thousand_requests_within_a_tick_are_one_question() -> None:
    now = [1.0]
    supervisor_end, shard_end = QueueControl.pair()
    query = StatusQuery(shard_end, now=lambda: now[0])
    for expected in ("first", "second"):
        requests = [asyncio.create_task(query.ask()) for _ in range(500)]
        query.answered(control_pb2.StatusAnswer(number=await number_asked(supervisor_end), json=expected))
        assert set(await asyncio.gather(*requests)) == {expected}
        now[0] += FRESH_S * 0.9
        assert {await query.ask() for _ in range(500)} == {expected}
        assert supervisor_end._inbox.empty()
        now[0] += FRESH_S * 0.2


async def test_of_requests_whose_first_is_cancelled_the_next_asks() -> None:
    supervisor_end, shard_end = QueueControl.pair()
    query = StatusQuery(shard_end)
    requests = [asyncio.create_task(query.ask()) for _ in range(3)]
    await number_asked(supervisor_end)
    requests[0].cancel()
    query.answered(control_pb2.StatusAnswer(number=await number_asked(supervisor_end), json="state"))
    assert await asyncio.gather(*requests[1:]) == ["state"] * 2


async def test_a_supervisor_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_query, "QUESTION_S", 0.01)
    _, shard_end = QueueControl.pair()
    with pytest.raises(Transient, match="has not answered"):
        await StatusQuery(shard_end).ask()


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
