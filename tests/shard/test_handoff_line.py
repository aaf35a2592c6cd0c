"""A line hands over every key, whatever fails on the way: here between a life and a receiver that the test plays."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from random import Random
from typing import Any

import pytest
from onelane.core.handoff import Handoff
from onelane.core.placement import Member, Placement
from onelane.shard import handoff_line
from onelane.shard.handoff_line import HandoffLine
from onelane.shard.handoff_span import HandoffSpan
from onelane.telemetry.tracer import Tracer
from onelane.testing import ManualClock
from onelane.v1 import siblings_pb2
from onelane.v1.siblings_pb2 import HandOverRequest, MovedKey

from tests.running_app import eventually

ME, RECEIVER = Member("echo-0", "", "", 5), Member("echo-1", "", "", 6)
CHANGE = Handoff(ME, Placement(1, (ME,)), Placement(2, (RECEIVER,)))
KEYS = [f"k{number}" for number in range(40)]


class FailingLife:
    """A `SendingLife` each of whose steps fails once, and its receiver, which takes everything."""

    life = ME.life

    def __init__(self, *fails: str) -> None:
        self._fails = set(fails)
        self.requests: list[HandOverRequest] = []
        self.acknowledged_keys: list[str] = []

    def _step(self, name: str) -> None:
        if name in self._fails:
            self._fails.remove(name)
            raise RuntimeError(f"{name} fails once")

    async def release(self, keys: Sequence[str]) -> None:
        self._step("release")

    def pack(self, keys: Sequence[str], request: HandOverRequest) -> None:
        self._step("pack")
        for key in keys:
            request.keys.add(key=key)

    def acknowledged(self, change: Handoff, life: int, moved: Sequence[MovedKey]) -> None:
        self.acknowledged_keys += [key.key for key in moved]

    async def give_way(self, received: int) -> int:
        await asyncio.sleep(0)
        return received

    def channel(self, to: Member) -> Any:
        self._step("channel")
        return self

    def unary_unary(self, method: str) -> Callable[[bytes], Any]:
        return self._take

    async def _take(self, request: bytes) -> None:
        self._step("call")
        self.requests.append(HandOverRequest.FromString(request))


class Unwritable:
    """A message of which no bytes can be had, as where there is no memory for them."""

    def __init__(self, **fields: Any) -> None:
        self._request = HandOverRequest(**fields)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)

    def SerializeToString(self) -> bytes:
        raise MemoryError


async def test_the_keys_of_a_batch_whose_bytes_cannot_be_had_are_packed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were gone from the line, and the change waited for them for ever."""
    requests: Iterator[Callable[..., Any]] = chain([Unwritable], repeat(HandOverRequest))
    monkeypatch.setattr(siblings_pb2, "HandOverRequest", lambda **fields: next(requests)(**fields))
    await _hand_over_all(FailingLife(), monkeypatch)


@pytest.mark.parametrize("step", ["release", "pack", "channel", "call"])
async def test_a_step_that_fails_once_is_made_again_and_all_keys_are_handed_over(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _hand_over_all(FailingLife(step), monkeypatch)


async def _hand_over_all(life: FailingLife, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handoff_line, "RESEND_S", 0.001)
    monkeypatch.setattr(handoff_line, "BATCH_KEYS", 8)
    monkeypatch.setattr(handoff_line, "UNDER_WAY", 1)
    tracer = Tracer(shard=ME.name, clock=ManualClock(1.0), rng=Random(1))
    line = HandoffLine(life, CHANGE, RECEIVER, HandoffSpan(tracer, None, RECEIVER))
    line.send(KEYS)
    await eventually(lambda: sorted(life.acknowledged_keys) == sorted(KEYS))
    line.send_done()
    await eventually(lambda: life.requests[-1].done)
    assert [len(request.keys) for request in life.requests] == [8] * 5 + [0]
    line.cancel()
    await asyncio.sleep(0)
