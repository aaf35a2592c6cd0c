"""The line between a supervisor and its shards: both ways of drawing it keep the same promises."""

import asyncio
import socket
from typing import Any

import pytest
import uvloop
from onelane.cluster.control import QueueControl, WireControl
from onelane.v1 import control_pb2
from onelane.wire.client import ClientConnection
from onelane.wire.http2 import Limits


@pytest.fixture(params=["wire", "queue"])
async def line(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """The supervisor's end, and the shard's."""
    if request.param == "queue":
        return QueueControl.pair()
    supervisor_end, shard_end = socket.socketpair()
    return (
        await WireControl.over(supervisor_end, control_pb2.ToSupervisor, serves=True),
        await WireControl.over(shard_end, control_pb2.ToShard, serves=False),
    )


def report(number: int, size: int = 0) -> control_pb2.ToSupervisor:
    return control_pb2.ToSupervisor(report=control_pb2.Report(seq=number, spans=[b"x" * size]))


async def test_messages_arrive_whole_and_in_order_both_ways(line: tuple[Any, Any]) -> None:
    supervisor, shard = line
    for number in range(100):
        await supervisor.send(control_pb2.ToShard(collect=number))
        await shard.send(report(number, 3000))
    assert [(await shard.receive()).collect for _ in range(100)] == list(range(100))
    assert [(await supervisor.receive()).report.seq for _ in range(100)] == list(range(100))
    supervisor.close()
    shard.close()


async def test_a_message_larger_than_every_window_arrives(line: tuple[Any, Any]) -> None:
    supervisor, shard = line
    sending = asyncio.create_task(shard.send(report(1, 20_000_000)))
    assert [*map(len, (await supervisor.receive()).report.spans)] == [20_000_000]
    await sending
    supervisor.close()
    shard.close()


async def test_when_one_side_hangs_up_the_other_has_what_was_sent_and_then_none(line: tuple[Any, Any]) -> None:
    supervisor, shard = line
    await shard.send(report(1))
    await shard.send(report(2))
    shard.close()
    assert (await supervisor.receive()).report.seq == 1
    assert (await supervisor.receive()).report.seq == 2
    assert await supervisor.receive() is None
    await supervisor.send(control_pb2.ToShard(collect=1))
    supervisor.close()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("turns", range(6))
def test_one_whose_connecting_is_cancelled_at_any_moment_writes_nothing_more(loop: Any, turns: int) -> None:
    """As of a shard that is launched while its supervisor gives up. What the shard has sent is there at once."""
    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(faults_after(turns)) == []


async def faults_after(turns: int) -> list[Any]:
    """What the loop reports where connecting is cancelled after so many turns of it."""
    faults: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    supervisor_end, shard_end = socket.socketpair()
    with supervisor_end, shard_end:
        shard_end.send(ClientConnection(Limits()).take())
        connecting = asyncio.ensure_future(WireControl.over(supervisor_end, control_pb2.ToSupervisor, serves=True))
        for _ in range(turns):
            await asyncio.sleep(0)
        connecting.cancel()
        await asyncio.wait([connecting])
        if not connecting.cancelled():
            connecting.result().close()
        # Reading, writing and the loss of the connection take one turn each.
        for _ in range(10):
            await asyncio.sleep(0)
    return faults


async def test_a_supervisor_that_does_not_read_holds_its_shard_back() -> None:
    supervisor_end, shard_end = socket.socketpair()
    supervisor: Any = await WireControl.over(supervisor_end, control_pb2.ToSupervisor, serves=True)
    shard = await WireControl.over(shard_end, control_pb2.ToShard, serves=False)
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while True:
            await shard.send(report(sent, 100_000))
            sent += 1

    flooding = asyncio.create_task(flood())
    before = -1
    while sent != before:
        before = sent
        await asyncio.sleep(0.1)
    assert sent * 100_000 < 4 * WireControl.max_queued
    for number in range(sent + 50):
        assert (await supervisor.receive()).report.seq == number
    flooding.cancel()
    supervisor.close()
    shard.close()
