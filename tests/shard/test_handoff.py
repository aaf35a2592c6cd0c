"""A shard hands over the state of keys that leave, and takes that of keys that arrive; here by the parts of one shard,
with a sibling and a supervisor that the test plays."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import onelane
import pytest
from onelane.cluster.control import QueueControl, placement_to_proto
from onelane.core.placement import Member, Placement
from onelane.errors import HandOverRefused
from onelane.server import sockets
from onelane.shard import handoff, handoff_line
from onelane.shard.moved_keys import moved_key, put_entries
from onelane.shard.wiring import ShardParts
from onelane.state import keyed
from onelane.state.entries import KeyedEntry
from onelane.v1.siblings_pb2 import (
    Entry,
    HandOverReply,
    HandOverRequest,
    HurryReply,
    HurryRequest,
    MovedKey,
    PublishReply,
    PublishRequest,
    RemindReply,
    RemindRequest,
)
from onelane.v1.siblings_pb2_grpc import SiblingsServicer, add_SiblingsServicer_to_server

from tests.bounds import BOUND_S
from tests.running_app import eventually
from tests.shard.parts import sent, setup, wired

LIFE, SIBLING_LIFE = 5, 6
KEYS = [f"k{number}" for number in range(40)]


class Sibling(SiblingsServicer):
    """Takes what is handed over, unless it is told to fail."""

    def __init__(self) -> None:
        self.requests: list[HandOverRequest] = []
        self.failures = 0
        self.life: int | None = None
        """It refuses what is for another life."""
        self.on_batch: Callable[[], object] = lambda: None
        """Called before it acknowledges a batch."""
        self.acknowledges = asyncio.Event()
        self.acknowledges.set()

    async def HandOver(self, request: HandOverRequest, context: Any) -> HandOverReply:
        if self.failures:
            self.failures -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        if self.life not in (None, request.to_life):
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"this is life {self.life}")
        self.requests.append(request)
        self.on_batch()
        await self.acknowledges.wait()
        return HandOverReply()

    async def Publish(self, request: PublishRequest, context: Any) -> PublishReply:
        raise NotImplementedError

    async def Hurry(self, request: HurryRequest, context: Any) -> HurryReply:
        raise NotImplementedError

    async def Remind(self, request: RemindRequest, context: Any) -> RemindReply:
        raise NotImplementedError

    @property
    def keys(self) -> list[str]:
        return [moved.key for request in self.requests for moved in request.keys]


@dataclass
class Bench:
    """A shard `echo-0` and its sibling `echo-1`."""

    parts: ShardParts
    supervisor: QueueControl
    me: Member
    sibling: Member

    @property
    def totals(self) -> dict[str, int]:
        return self.parts.shard.keyed("totals", int)

    def prepare(self, before: tuple[Member, ...], after: tuple[Member, ...]) -> None:
        self.parts.handoff.prepare(Placement(1, before), Placement(2, after), ())

    def take(self, *keys: str, done: bool = False, **changed: Any) -> HandOverRequest:
        """A batch of the sibling's, with a total of 7 for each key."""
        moved = [moved_key(key, [KeyedEntry("totals", key, b"\x07", "msgpack", 1)]) for key in keys]
        fields = {"epoch": 2, "from_life": SIBLING_LIFE, "to_life": LIFE} | changed
        return HandOverRequest(keys=moved, done=done, **fields)

    async def reported(self) -> list[str]:
        """The kinds of the messages to the supervisor so far."""
        return [message.WhichOneof("kind") for message in await sent(self.supervisor)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    described = setup(tmp_path)
    me = Member("echo-0", "127.0.0.1:50061", described.socket, LIFE)
    described.life = LIFE
    described.placement.CopyFrom(placement_to_proto(Placement(1, (me,))))
    parts, supervisor = wired(described)
    parts.shard.keyed("totals", int)
    return Bench(parts, supervisor, me, Member("echo-1", "127.0.0.1:50062", f"{tmp_path}/echo-1", SIBLING_LIFE))


@pytest.fixture
async def sibling(bench: Bench) -> AsyncIterator[Sibling]:
    """Listens on its socket."""
    server, servicer = grpc.aio.server(), Sibling()
    add_SiblingsServicer_to_server(servicer, server)
    server.add_insecure_port(f"unix:{bench.sibling.socket}")
    await server.start()
    yield servicer
    await server.stop(0)


def lost(bench: Bench) -> dict[str, Any]:
    """Reason → how many entries, as counted."""
    points = bench.parts.shard.stats.take()
    return {dict(p.attributes)["onelane.reason"]: p.value for p in points if p.instrument.name == "onelane.state.lost"}


async def close(bench: Bench) -> None:
    await bench.parts.handoff.aclose()
    await bench.parts.sibling_channels.aclose()


# Whom it waits for


async def until_waits_for(bench: Bench, *lives: int) -> set[tuple[int, ...]]:
    """Until it tells the supervisor so; returns all that it has told meanwhile."""
    words: set[tuple[int, ...]] = set()
    while lives not in words:
        message = await bench.supervisor.receive()
        if message is not None and message.HasField("progress"):
            words.add(tuple(message.progress.waits_for))
    return words


async def test_it_tells_that_it_waits_for_a_sibling_which_does_not_take_what_is_handed_over(
    bench: Bench, sibling: Sibling
) -> None:
    sibling.acknowledges.clear()
    bench.totals.update(dict.fromkeys(KEYS, 7))
    bench.prepare((bench.me,), (bench.sibling,))
    await until_waits_for(bench, SIBLING_LIFE)
    sibling.acknowledges.set()
    await until_waits_for(bench)
    await close(bench)


async def test_it_waits_for_a_sibling_that_it_cannot_reach(bench: Bench) -> None:
    """Nobody listens there: a network that is cut is no fault of the two lives at its ends."""
    bench.totals.update(dict.fromkeys(KEYS, 7))
    bench.prepare((bench.me,), (bench.sibling,))
    assert await until_waits_for(bench, SIBLING_LIFE) == {(SIBLING_LIFE,)}
    await close(bench)


async def test_it_tells_that_it_waits_for_a_sibling_which_has_not_said_that_nothing_comes_any_more(
    bench: Bench,
) -> None:
    bench.prepare((bench.sibling,), (bench.me,))
    await until_waits_for(bench, SIBLING_LIFE)
    await bench.parts.handoff.hand_over(bench.take(done=True))
    await until_waits_for(bench)
    await close(bench)


@pytest.mark.parametrize("hangs", ["_scan", "_pack"])
async def test_it_tells_that_a_step_of_its_own_is_missing(
    hangs: str, bench: Bench, sibling: Sibling, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(handoff.HandoffCarrier if hangs == "_scan" else handoff_line.HandoffLine, hangs, hang)
    bench.totals.update(dict.fromkeys(KEYS, 7))
    bench.prepare((bench.me,), (bench.sibling,))
    await until_waits_for(bench, *((LIFE,) if hangs == "_scan" else (LIFE, SIBLING_LIFE)))
    await close(bench)


# What leaves


async def test_all_keys_that_leave_are_handed_over_and_forgotten_and_the_supervisor_is_told(
    bench: Bench, sibling: Sibling
) -> None:
    bench.totals.update(dict.fromkeys(KEYS, 7))
    bench.prepare((bench.me,), (bench.sibling,))
    await eventually(lambda: bool(sibling.requests) and sibling.requests[-1].done)
    assert sorted(sibling.keys) == sorted(KEYS)
    assert {request.to_life for request in sibling.requests} == {SIBLING_LIFE}
    await eventually(lambda: bench.totals == {})
    assert "departed" in await bench.reported()
    await close(bench)


async def test_a_change_that_comes_before_the_last_ones_placement_sends_with_its_own_epoch(
    bench: Bench, sibling: Sibling
) -> None:
    """The placement that ends a change goes by way of the membership; the next change does not."""
    bench.totals.update(dict.fromkeys(KEYS, 3))
    both = (bench.me, bench.sibling)
    bench.prepare((bench.me,), both)
    await eventually(lambda: sibling.requests and sibling.requests[-1].done)
    bench.parts.handoff.prepare(Placement(2, both), Placement(3, (bench.sibling,)), ())
    await eventually(lambda: len(sibling.keys) == len(KEYS))
    await eventually(lambda: sibling.requests[-1].done)
    assert [request.epoch for request in sibling.requests if request.done] == [2, 3]
    await close(bench)


async def test_batches_are_under_way_together_and_the_last_message_follows_their_acknowledgements(
    bench: Bench, sibling: Sibling
) -> None:
    sibling.acknowledges.clear()
    bench.totals.update((f"key-{number}", 7) for number in range(3 * handoff_line.BATCH_KEYS))
    bench.prepare((bench.me,), (bench.sibling,))
    await eventually(lambda: len(sibling.keys) == len(bench.totals))
    assert len(sibling.requests) >= 3
    assert not any(request.done for request in sibling.requests)
    sibling.acknowledges.set()
    await eventually(lambda: sibling.requests[-1].done and bench.totals == {})
    await close(bench)


@pytest.mark.parametrize("scan", [8, 64], ids=["before it is looked at", "as it waits for its batch"])
async def test_a_key_that_is_called_goes_before_all_that_nobody_waits_for(
    scan: int, bench: Bench, sibling: Sibling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 100,000 keys the last one leaves after seconds; a call of it would be held by its next owner for as long."""
    monkeypatch.setattr(handoff, "SCAN_KEYS", scan)
    monkeypatch.setattr(handoff_line, "BATCH_KEYS", 4)
    monkeypatch.setattr(handoff_line, "UNDER_WAY", 1)
    bench.totals.update(dict.fromkeys(KEYS, 7))
    sibling.acknowledges.clear()
    bench.prepare((bench.me,), (bench.sibling,))
    await eventually(lambda: len(sibling.requests) == 1)
    owner = bench.parts.lane.router.find_home(KEYS[-1])
    assert (owner, "k39" in sibling.keys) == (bench.sibling, False)
    sibling.acknowledges.set()
    await eventually(lambda: sibling.requests[-1].done)
    assert sorted(sibling.keys) == sorted(KEYS), "each once"
    assert sibling.keys.index(KEYS[-1]) <= 2 * 4, "in the next batch, or the one that was packed meanwhile"
    await close(bench)


async def test_a_key_that_its_new_owner_asks_for_goes_before_all_that_nobody_waits_for(
    bench: Bench, sibling: Sibling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where that has heard of the change first; what does not leave, and what is of another change, is ignored."""
    monkeypatch.setattr(handoff_line, "BATCH_KEYS", 4)
    monkeypatch.setattr(handoff_line, "UNDER_WAY", 1)
    bench.totals.update(dict.fromkeys(KEYS, 7))
    sibling.acknowledges.clear()
    carrier = bench.parts.handoff
    await carrier.hurry(HurryRequest(epoch=1, keys=KEYS))
    early = asyncio.create_task(carrier.hurry(HurryRequest(epoch=2, keys=[KEYS[-1], "without state"])))
    await asyncio.sleep(0)
    assert not early.done()
    bench.prepare((bench.me,), (bench.sibling,))
    await early
    await carrier.hurry(HurryRequest(epoch=1, keys=KEYS[20:30]))
    sibling.acknowledges.set()
    await eventually(lambda: bool(sibling.requests) and sibling.requests[-1].done)
    assert sorted(sibling.keys) == sorted([*KEYS, "without state"]), "each once"
    assert {KEYS[-1], "without state"} <= set(sibling.keys[: 2 * 4])
    await close(bench)


async def test_so_many_batches_are_under_way_and_no_more(bench: Bench, sibling: Sibling) -> None:
    sibling.acknowledges.clear()
    per_batch, most = handoff_line.BATCH_KEYS, handoff_line.UNDER_WAY
    bench.totals.update((f"key-{number}", 7) for number in range(per_batch * (most + 2)))
    bench.prepare((bench.me,), (bench.sibling,))
    await eventually(lambda: len(sibling.requests) == most)
    await asyncio.sleep(0)
    assert len(sibling.keys) <= per_batch * most
    sibling.acknowledges.set()
    await eventually(lambda: sibling.requests[-1].done)
    assert len(sibling.keys) == per_batch * (most + 2)
    await close(bench)


async def test_a_batch_that_fails_is_sent_again_and_nothing_is_forgotten_before(
    bench: Bench, sibling: Sibling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handoff_line, "RESEND_S", 0.001)
    bench.totals["k"] = 7
    sibling.failures = 3
    bench.prepare((bench.me,), (bench.sibling,))
    await eventually(lambda: not sibling.failures)
    await eventually(lambda: bench.totals == {})
    assert sibling.keys == ["k"]
    await close(bench)


async def test_that_batches_are_sent_again_is_logged_ever_more_seldom(
    bench: Bench, sibling: Sibling, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A machine that is dead takes none of 16 batches, each twenty times a second."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(handoff_line, "RESEND_S", 0.001)
    bench.totals["k"] = 7
    sibling.failures = 20
    bench.prepare((bench.me,), (bench.sibling,))
    await eventually(lambda: bench.totals == {})
    assert re.findall(r"handoff\.sent_again to=echo-1 life=6 times=(\d+)", caplog.text) == ["1", "2", "4", "8", "16"]
    await close(bench)


async def test_a_batch_is_sent_again_to_a_receiver_that_was_given_up_and_lives(
    bench: Bench, sibling: Sibling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lane did not tick for a while: the channel to it was closed under the batch."""
    monkeypatch.setattr(handoff_line, "RESEND_S", 0.001)
    bench.totals["k"] = 7
    sibling.acknowledges.clear()
    bench.prepare((bench.me,), (bench.sibling,))
    await eventually(lambda: sibling.keys == ["k"])
    bench.parts.sibling_channels.give_up(bench.sibling)
    await eventually(lambda: sibling.keys == ["k", "k"])
    sibling.acknowledges.set()
    await eventually(lambda: bench.totals == {})
    await close(bench)


async def test_a_key_leaves_after_its_last_turn_and_with_what_that_has_changed(bench: Bench, sibling: Sibling) -> None:
    async with bench.parts.shard.turn("k"):
        bench.prepare((bench.me,), (bench.sibling,))
        bench.totals["idle"] = 1
        await asyncio.sleep(0)
        bench.totals["k"] = 9
        assert "k" not in sibling.keys
    await eventually(lambda: "k" in sibling.keys)
    [entry] = next(moved for request in sibling.requests for moved in request.keys if moved.key == "k").entries
    assert entry.value == b"\x09"
    await close(bench)


async def test_hooks_are_told_once_of_a_key_that_leaves_also_where_its_receiver_dies(
    bench: Bench, tmp_path: Path
) -> None:
    heard: list[object] = []
    bench.parts.shard.on_leave(heard.append)
    bench.totals["k"] = 7
    held = sockets.listening(f"unix:{bench.sibling.socket}")
    bench.prepare((bench.me,), (bench.sibling,))
    await eventually(lambda: heard == ["k"])
    bench.parts.handoff.gone(SIBLING_LIFE)
    server, servicer = grpc.aio.server(), Sibling()
    add_SiblingsServicer_to_server(servicer, server)
    next_life = Member(bench.sibling.name, bench.sibling.address, f"{tmp_path}/next", SIBLING_LIFE + 1)
    server.add_insecure_port(f"unix:{next_life.socket}")
    await server.start()
    bench.parts.handoff.reborn(next_life)
    await eventually(lambda: servicer.keys == ["k"] and servicer.requests[-1].done)
    assert heard == ["k"]
    assert servicer.requests[0].to_life == next_life.life
    await close(bench)
    await server.stop(0)
    held.close()


async def test_what_was_for_a_life_that_has_a_next_one_is_sent_to_that_alone_though_nobody_has_told_its_death(
    bench: Bench, sibling: Sibling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next life has its socket, and refuses what is for the dead one."""
    monkeypatch.setattr(handoff_line, "RESEND_S", 0.001)
    sibling.life = SIBLING_LIFE + 1
    bench.totals["k"] = 7
    bench.prepare((bench.me,), (bench.sibling,))
    async with asyncio.timeout(BOUND_S):
        while not (deliveries := tasks_of("HandoffLine._deliver")):  # noqa: ASYNC110 - a line tells nobody
            await asyncio.sleep(0)
        bench.parts.handoff.reborn(replace(bench.sibling, life=sibling.life))
        await asyncio.wait(deliveries)
    await eventually(lambda: sibling.keys == ["k"] and sibling.requests[-1].done)
    await close(bench)


def tasks_of(name: str) -> set[asyncio.Task[Any]]:
    """Those that run the coroutine function of this qualified name."""
    return {task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__qualname__", "") == name}


async def test_a_value_that_cannot_leave_holds_up_no_change(bench: Bench, sibling: Sibling) -> None:
    bench.totals.update({"good": 7, "bad": "no number"})  # type: ignore[dict-item]
    bench.prepare((bench.me,), (bench.sibling,))
    await eventually(lambda: bool(sibling.requests) and sibling.requests[-1].done)
    moved = {moved.key: len(moved.entries) for request in sibling.requests for moved in request.keys}
    assert moved == {"good": 1, "bad": 0}
    await close(bench)


class Panic(BaseException):
    """What a codec in Rust raises where it fails: no `Exception`, and this one has no text either."""

    def __str__(self) -> str:
        raise RuntimeError


class FailingCodec:
    """Fails for the value "bad", whichever way it goes."""

    @staticmethod
    def encode(value: Any) -> bytes:
        if value == "bad":
            raise Panic
        return str(value).encode()

    @staticmethod
    def decode(data: bytes) -> str:
        if data == b"bad":
            raise Panic
        return data.decode()


async def test_a_codec_that_fails_in_whatever_way_holds_up_no_change(bench: Bench, sibling: Sibling) -> None:
    texts = bench.parts.shard.keyed("texts", str, codec=FailingCodec)
    texts.update({"k": "good", "l": "bad"})
    bench.prepare((bench.me,), (bench.sibling,))
    await eventually(lambda: bool(sibling.requests) and sibling.requests[-1].done)
    moved = {moved.key: len(moved.entries) for request in sibling.requests for moved in request.keys}
    assert moved == {"k": 1, "l": 0}
    await close(bench)


async def test_a_value_that_cannot_be_sent_at_all_costs_its_key_alone(
    bench: Bench, sibling: Sibling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one of two gigabytes."""

    def put(moved: MovedKey, entries: Iterable[KeyedEntry]) -> int:
        size = put_entries(moved, entries)
        if moved.key == "l":
            raise ValueError("too large")
        return size

    monkeypatch.setattr(handoff, "put_entries", put)
    bench.totals.update(k=7, l=7)
    bench.prepare((bench.me,), (bench.sibling,))
    await eventually(lambda: bool(sibling.requests) and sibling.requests[-1].done)
    assert {moved.key: len(moved.entries) for request in sibling.requests for moved in request.keys} == {"k": 1, "l": 0}
    await close(bench)


async def test_a_value_that_is_larger_than_a_message_can_be_is_lost_once_and_holds_up_nothing(
    bench: Bench, sibling: Sibling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyed, "MOST_BYTES", 100)
    texts = bench.parts.shard.keyed("texts", str)
    texts.update(k="small", l="large" * 100, m="small")
    bench.totals.update(l=7)
    bench.prepare((bench.me,), (bench.sibling,))
    await eventually(lambda: bool(sibling.requests) and sibling.requests[-1].done)
    moved = {
        moved.key: [entry.dict for entry in moved.entries] for request in sibling.requests for moved in request.keys
    }
    assert moved == {"k": ["texts"], "l": ["totals"], "m": ["texts"]}
    assert lost(bench) == {"unwritable": 1}, "not once more as it is forgotten"
    await close(bench)


async def test_a_value_that_its_codec_fails_to_read_is_kept_as_it_came_and_its_batch_acknowledged(bench: Bench) -> None:
    bench.parts.shard.keyed("texts", str, codec=FailingCodec)
    bench.prepare((bench.sibling,), (bench.me,))
    await asyncio.sleep(0)
    entry = KeyedEntry("texts", "k", b"bad", "FailingCodec", 1)
    batch = HandOverRequest(keys=[moved_key("k", [entry])], epoch=2, from_life=SIBLING_LIFE, to_life=LIFE)
    await bench.parts.handoff.hand_over(batch)
    assert bench.parts.shard.keyed_dicts.entries_of("k") == [entry]
    await close(bench)


async def test_the_supervisor_hears_of_the_progress_also_where_the_first_keys_that_are_looked_at_stay(
    bench: Bench, sibling: Sibling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handoff, "SCAN_KEYS", 1)
    monkeypatch.setattr(handoff, "PROGRESS_S", 0.01)
    after = Placement(2, (bench.me, bench.sibling))
    staying = [key for key in KEYS if after.owner_of(key) == bench.me]
    leaving = [key for key in KEYS if key not in staying]
    bench.totals.update(dict.fromkeys([*staying, *leaving], 7))
    bench.prepare((bench.me,), after.members)
    async with asyncio.timeout(BOUND_S):
        departed = 0
        while departed < len(leaving):
            message = await bench.supervisor.receive()
            assert message is not None
            departed = message.progress.departed
    await close(bench)


async def test_a_change_gives_way_to_calls_between_two_pieces(
    bench: Bench, sibling: Sibling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here for good after the first piece, since a call has come; the other tests, without calls, give no way."""
    monkeypatch.setattr(handoff, "GIVE_WAY_S", 3600.0)
    monkeypatch.setattr(handoff, "SCAN_KEYS", 1)
    monkeypatch.setattr(handoff, "PROGRESS_S", 0.01)
    bench.totals.update(dict.fromkeys(KEYS, 7))
    bench.parts.lane.received += 1
    bench.prepare((bench.me,), (bench.sibling,))
    looked_at: list[int] = []
    async with asyncio.timeout(BOUND_S):
        while len(looked_at) < 3:
            message = await bench.supervisor.receive()
            assert message is not None
            if message.HasField("progress"):
                looked_at.append(message.progress.leaving + message.progress.departed)
    assert looked_at == [1, 1, 1]
    await close(bench)


# What arrives


async def test_what_arrives_is_there_before_the_hooks_and_they_before_its_first_turn(bench: Bench) -> None:
    heard: list[tuple[object, int | None]] = []
    bench.parts.shard.on_arrive(lambda key: heard.append((key, bench.totals.get(str(key)))))
    bench.prepare((bench.sibling,), (bench.me,))
    first_turn = asyncio.ensure_future(bench.parts.lane.queue.hold("k", "first"))
    await asyncio.sleep(0)
    assert not first_turn.done()
    await bench.parts.handoff.hand_over(bench.take("k"))
    await asyncio.wait_for(first_turn, BOUND_S)
    assert heard == [("k", 7)]
    await bench.parts.handoff.hand_over(bench.take(done=True))
    await asyncio.sleep(0)
    assert "arrived" in await bench.reported()
    await close(bench)


NEWER = bytes([9 << 3 | 2, 3]) + b"new"
"""Of an `Entry`: a key in a field that this release does not have."""


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        (
            Entry(dict="totals", value=b"\x07", codec="msgpack", version=1).SerializeToString() + NEWER,
            "field 9 of Entry",
        ),
        (Entry(dict="totals", value=b"\x07", composite="xnew/i7").SerializeToString(), "the composite 'xnew/i7'"),
        (Entry(dict="totals", value=b"\x07", integer="0x7").SerializeToString(), "the integer '0x7'"),
    ],
    ids=["field", "part", "integer"],
)
async def test_an_entry_whose_key_only_a_newer_release_can_read_goes_back_to_it_as_it_came(
    bench: Bench, sibling: Sibling, caplog: pytest.LogCaptureFixture, written: bytes, kind: str
) -> None:
    """In the middle of an upgrade: the change ends, and the log says which kind of key, and whose."""
    bench.prepare((bench.sibling,), (bench.me,))
    await asyncio.sleep(0)
    batch = bench.take(done=True, release="2.5.0")
    batch.keys.add(key="k").entries.add().MergeFromString(written)
    await bench.parts.handoff.hand_over(batch)
    assert f"keyed 'totals', key <{kind}>: the routing key 'k' is spelled in a way" in caplog.text
    assert "onelane 2.5.0 has sent its entries" in caplog.text
    assert bench.totals == {}
    after = Placement(2, (bench.me,))
    bench.parts.lane.place(after)
    bench.parts.handoff.placed(after)
    bench.parts.handoff.prepare(after, Placement(3, (bench.sibling,)), ())
    await eventually(lambda: sibling.keys == ["k"])
    (back,) = sibling.requests[0].keys[0].entries
    assert back.SerializeToString() == written
    assert sibling.requests[0].release == onelane.__version__
    assert "arrived" in await bench.reported()
    await close(bench)


async def test_a_batch_that_is_repeated_does_not_undo_what_was_changed_meanwhile(bench: Bench) -> None:
    bench.prepare((bench.sibling,), (bench.me,))
    await bench.parts.handoff.hand_over(bench.take("k"))
    bench.totals["k"] += 1
    await bench.parts.handoff.hand_over(bench.take("k"))
    assert bench.totals["k"] == 8
    await close(bench)


async def test_a_batch_that_comes_before_its_change_waits_for_it(bench: Bench) -> None:
    handing_over = asyncio.ensure_future(bench.parts.handoff.hand_over(bench.take("k")))
    await asyncio.sleep(0)
    assert bench.totals == {}
    bench.prepare((bench.sibling,), (bench.me,))
    await asyncio.wait_for(handing_over, BOUND_S)
    assert bench.totals == {"k": 7}
    await close(bench)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"to_life": 4}, "this is life 5, not 4"),
        ({"from_life": 9}, "life 9 hands nothing over"),
        ({"epoch": 1}, "the change to epoch 1 is over"),
    ],
    ids=["meant for the life before", "of a stranger", "of a change that is over"],
)
async def test_a_batch_that_must_not_be_taken_is_refused(bench: Bench, changed: dict[str, int], reason: str) -> None:
    bench.prepare((bench.sibling,), (bench.me,))
    with pytest.raises(HandOverRefused, match=reason):
        await bench.parts.handoff.hand_over(bench.take("k", done=False, **changed))
    assert bench.totals == {}
    await close(bench)


async def test_of_a_life_that_has_died_nothing_is_taken_and_its_keys_are_served(bench: Bench) -> None:
    bench.prepare((bench.sibling,), (bench.me,))
    held = asyncio.ensure_future(bench.parts.lane.queue.hold("k", "held"))
    await asyncio.sleep(0)
    bench.parts.handoff.gone(SIBLING_LIFE)
    await asyncio.wait_for(held, BOUND_S)
    with pytest.raises(HandOverRefused, match="life 6 is dead"):
        await bench.parts.handoff.hand_over(bench.take("k"))
    await close(bench)


async def test_a_change_that_is_told_again_is_answered_again_and_not_begun_again(bench: Bench) -> None:
    for _ in range(2):
        bench.prepare((bench.me, bench.sibling), (bench.me, bench.sibling))
        await asyncio.sleep(0)
        assert {"departed", "arrived"} <= set(await bench.reported())
    bench.parts.lane.place(Placement(2, (bench.me, bench.sibling)))
    bench.parts.handoff.placed(Placement(2, (bench.me, bench.sibling)))
    bench.prepare((bench.me, bench.sibling), (bench.me, bench.sibling))
    assert bench.parts.lane.router.handoff is None
    await close(bench)


async def test_only_siblings_hand_over_and_publish(bench: Bench) -> None:
    refusals: list[grpc.StatusCode] = []

    class Stranger:
        trusted = False

        async def abort(self, code: grpc.StatusCode, details: str) -> None:
            refusals.append(code)
            raise PermissionError

    bench.parts.services.load()
    for path, request in (
        ("HandOver", bench.take("k")),
        ("Hurry", HurryRequest()),
        ("Publish", PublishRequest()),
    ):
        handler = bench.parts.lane.entries[f"/onelane.v1.Siblings/{path}"].method.handler
        with pytest.raises(PermissionError):
            await handler(request, Stranger())
    assert refusals == [grpc.StatusCode.PERMISSION_DENIED] * 3
