"""A shard starts, serves, drains and stops by its supervisor's orders; here behind a listener in memory."""

import asyncio
import logging
import re
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from onelane.cluster.control import QueueControl, placement_to_proto
from onelane.core.placement import Member, Placement
from onelane.server import sockets
from onelane.server.call import Call
from onelane.shard import lifecycle, pubsub
from onelane.shard.lifecycle import ShardLifecycle, run
from onelane.shard.watchdog import Watchdog
from onelane.testing.listener import NET, MemoryListener
from onelane.v1 import control_pb2
from onelane.wire import framing

from tests import frames
from tests.bounds import BOUND_S
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.running_app import eventually
from tests.shard.parts import LISTEN, setup

WATCHDOG = Watchdog(may_exit=False)


class RunningShard:
    """A shard that serves, and its supervisor's end of the line."""

    def __init__(self, folder: Path, *listening: socket.socket) -> None:
        self.supervisor_end, shard_end = QueueControl.pair()
        described = setup(folder, listener="native" if listening else "memory", stall_s=0)
        self.lifecycle = ShardLifecycle(described, shard_end, listening)
        self.sibling_address = f"unix:{described.socket}"

    async def serve(self) -> None:
        # One task, so that what is bound to the shard stays in its context.
        await self.lifecycle.start(whole_process=False)
        await self.lifecycle.serve(WATCHDOG)
        await self.lifecycle.stop()

    async def order(self, **order: Any) -> None:
        await self.supervisor_end.send(control_pb2.ToShard(**order))

    def calls_under_way(self) -> Sequence[Call]:
        return self.lifecycle.parts.listener.under_way()

    async def next_message(self, kind: str) -> Any:
        """The next message of this kind; those of other kinds in between are left out."""
        while True:
            message: Any = await self.supervisor_end.receive()
            if message.WhichOneof("kind") == kind:
                return getattr(message, kind)

    async def call(self, method: str, address: str = LISTEN, *, key: str, text: str = "") -> Any:
        listener = self.lifecycle.parts.listener
        assert isinstance(listener, MemoryListener)
        return await listener.call(
            address, f"/echo.v1.Echo/{method}", [EchoRequest(key=key, text=text).SerializeToString()]
        )


@asynccontextmanager
async def serving(folder: Path, *listening: socket.socket) -> AsyncIterator[RunningShard]:
    """A shard that has reported ready. It is ordered to stop at the end. listening: its three sockets, else it listens
    in memory."""
    shard = RunningShard(folder, *listening)
    task = asyncio.create_task(shard.serve())
    await shard.next_message("ready")
    try:
        yield shard
        await shard.order(stop={})
    finally:
        shard.supervisor_end.close()
        await task


async def test_it_serves_once_it_has_reported_ready_and_ends_with_a_final_report(tmp_path: Path) -> None:
    async with serving(tmp_path) as shard:
        outcome = await shard.call("Unary", key="k", text="hello")
        assert EchoReply.FromString(outcome.messages[0]).text == "hello"
        await shard.order(collect=5)
        while (report := await shard.next_message("report")).collect != 5:
            pass
        await shard.order(stop={})
        while not (await shard.next_message("report")).final:
            pass
    assert report.seq >= 1
    assert NET.listeners == {}


async def test_calls_and_batches_to_a_sibling_end_once_it_is_unresponsive_and_the_next_batch_is_sent_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They waited for all of their deadlines, where forwarded calls are ended."""
    monkeypatch.setattr(pubsub, "FLUSH_S", 0.01)
    stopped = Member("echo-1", "127.0.0.1:50062", f"{tmp_path}/echo-1")
    # The kernel accepts for it; nobody answers.
    with sockets.listening(f"unix:{stopped.socket}") as held:
        held.settimeout(BOUND_S)
        async with serving(tmp_path) as shard, asyncio.timeout(BOUND_S):
            parts = shard.lifecycle.parts
            placement = Placement(2, (*parts.lane.placement.members, stopped))
            await shard.order(placement=placement_to_proto(placement))
            await eventually(lambda: parts.lane.placement.epoch == 2)
            key = next(key for key in map(str, range(1000)) if placement.owner_of(key) == stopped)
            call: Any = parts.shard.call(key, "echo.v1.Echo/Unary", EchoRequest(key=key), timeout=60)
            calling = asyncio.create_task(call)
            parts.shard.publish("topic", EchoReply(), at_once=True)
            accepted = [(await asyncio.to_thread(held.accept))[0]]
            await shard.order(away={"unresponsive": ["echo-1"]})
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await calling
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert caught.value.details() == "shard echo-1 does not answer: its lane does not tick"
            await eventually(lambda: "publish.undelivered" in caplog.text)
            parts.shard.publish("topic", EchoReply(), at_once=True)
            accepted.append((await asyncio.to_thread(held.accept))[0])
    for sock in accepted:
        sock.close()


async def test_a_part_that_does_not_end_keeps_no_other_from_it_nor_the_final_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as shard:
        forwarder = shard.lifecycle.parts.forwarder

        async def fail() -> None:
            raise OSError("disk full")

        monkeypatch.setattr(forwarder, "aclose", fail)
        await shard.order(stop={})
        while not (await shard.next_message("report")).final:
            pass
    assert "shard.part_not_ended shard=echo-0" in caplog.text


async def test_a_supervisor_that_is_gone_stops_the_shard(tmp_path: Path) -> None:
    shard = RunningShard(tmp_path)
    task = asyncio.create_task(shard.serve())
    await shard.next_message("ready")
    shard.supervisor_end.close()
    await task
    assert NET.listeners == {}


async def test_a_drain_refuses_clients_serves_siblings_and_waits_for_calls_under_way(tmp_path: Path) -> None:
    async with serving(tmp_path) as shard:
        held = asyncio.create_task(shard.call("Hold", key="k"))
        await eventually(lambda: shard.lifecycle.parts.lane.in_flight)
        await shard.order(drain={"grace_s": 20})
        await eventually(lambda: shard.lifecycle.parts.lane.draining)
        assert (await shard.call("Unary", key="j")).code is grpc.StatusCode.UNAVAILABLE
        released = await shard.call("Release", shard.sibling_address, key="k")
        assert released.code is grpc.StatusCode.OK
        assert (await held).code is grpc.StatusCode.OK
        await shard.next_message("drained")


async def test_a_drain_waits_for_forwarded_calls_under_way_and_serves_those_that_siblings_send_meanwhile(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as shard:
        held = asyncio.create_task(shard.call("Hold", shard.sibling_address, key="k"))
        await eventually(lambda: shard.lifecycle.parts.lane.in_flight)
        await shard.order(drain={"grace_s": 20})
        await eventually(lambda: shard.lifecycle.parts.lane.draining)
        kinds: list[str] = []
        while kinds.count("report") < 2:
            message: Any = await shard.supervisor_end.receive()
            kinds.append(message.WhichOneof("kind"))
        assert "drained" not in kinds
        assert (await shard.call("Unary", shard.sibling_address, key="j")).code is grpc.StatusCode.OK
        await shard.call("Release", shard.sibling_address, key="k")
        assert (await held).code is grpc.StatusCode.OK
        await shard.next_message("drained")


async def test_forwarded_calls_that_come_during_a_drain_have_a_grace_of_their_own_and_the_shard_reports_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "STOP_S", 0.0)
    async with serving(tmp_path) as shard:
        await shard.order(drain={"grace_s": 20})
        await shard.next_message("drained")
        held = asyncio.create_task(shard.call("Hold", shard.sibling_address, key="k"))
        await eventually(lambda: shard.lifecycle.parts.lane.in_flight)
        await shard.order(stop={"grace_s": 20})
        await eventually(lambda: not NET.listeners)
        await shard.next_message("report")
        assert not (await shard.next_message("report")).final
        shard.lifecycle.parts.services.servicers[0].held["k"].set()  # type: ignore[attr-defined]
        assert (await held).code is grpc.StatusCode.OK


async def test_a_drain_waits_for_a_call_whose_message_is_still_to_come_and_serves_it(tmp_path: Path) -> None:
    message = framing.frame(EchoRequest(key="k").SerializeToString())
    shared, own = sockets.listening("127.0.0.1:0"), sockets.listening("127.0.0.1:0")
    async with serving(tmp_path, shared, own, sockets.listening(f"unix:{tmp_path}/echo-0")) as shard:
        reader, writer = await asyncio.open_connection(*own.getsockname())
        writer.write(frames.HELLO + frames.headers(1, frames.request(b"/echo.v1.Echo/Unary")))
        await eventually(shard.calls_under_way)
        await shard.order(drain={"grace_s": 20})
        await eventually(lambda: shard.lifecycle.parts.lane.draining)
        writer.write(frames.frame(frames.DATA, message, flags=frames.END_STREAM, stream=1))
        answer = [kind async for kind, *_ in frames.frames(reader)]
        assert answer.count(frames.DATA) == 1, "UNAVAILABLE would be headers alone"
        writer.close()
        await shard.next_message("drained")


async def test_a_drain_says_what_it_waits_for_and_how_long_it_took(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(tmp_path) as shard:
        held = asyncio.create_task(shard.call("Hold", key="k"))
        await eventually(lambda: shard.lifecycle.parts.lane.in_flight)
        await shard.order(drain={"grace_s": 20})
        await eventually(lambda: "shard.drain_waits" in caplog.text)
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)
        await shard.next_message("drained")
    assert re.search(r"shard\.drain_waits shard=echo-0 for_calls=1 of=\S+ since_s=\d+\.\d at_most_s=20\n", caplog.text)
    assert re.search(r"shard\.drained shard=echo-0 after_s=\d+\.\d\n", caplog.text)


async def test_a_drain_ends_with_its_grace_and_says_what_it_cut_short(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as shard:
        held = asyncio.create_task(shard.call("Hold", key="k"))
        await eventually(lambda: shard.lifecycle.parts.lane.in_flight)
        await shard.order(drain={"grace_s": 0.01})
        await shard.next_message("drained")
        assert "shard.drain_cut_short shard=echo-0 under_way=1" in caplog.text
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)


async def test_a_newer_placement_reaches_the_lane(tmp_path: Path) -> None:
    async with serving(tmp_path) as shard:
        newer = Placement(2, (Member("echo-0", "127.0.0.1:50061", ""), Member("echo-1", "127.0.0.1:50062", "")))
        await shard.order(placement=placement_to_proto(newer))
        await eventually(lambda: shard.lifecycle.parts.lane.placement.epoch == 2)


@pytest.mark.parametrize(
    ("service", "reason"),
    [
        ("tests.nowhere:Service", "no module 'tests.nowhere'"),
        ("tests.broken:Broken", "RuntimeError: this service cannot be made\n"),
        ("tests.broken:Grouped", "OSError: disk full\n"),
    ],
)
async def test_a_shard_that_cannot_start_says_why_and_does_not_listen(
    tmp_path: Path, service: str, reason: str
) -> None:
    supervisor_end, shard_end = QueueControl.pair()
    described = setup(tmp_path, services=(service,), listener="memory")
    await supervisor_end.send(control_pb2.ToShard(setup=described))
    assert not await asyncio.create_task(run(shard_end, WATCHDOG))
    message: Any = await supervisor_end.receive()
    assert message.failed.reason.startswith(f"apps.echo.services: {service}: {reason}")
    assert NET.listeners == {}


async def test_a_supervisor_that_is_gone_before_the_setup_starts_nothing() -> None:
    _, shard_end = QueueControl.pair()
    shard_end.close()
    assert not await run(shard_end, WATCHDOG)
