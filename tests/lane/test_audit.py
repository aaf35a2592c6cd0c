"""Each refusal is one line of the audit log; of a flood a few lines, and how many were left out."""

import asyncio
import logging

import pytest
from onelane.core.identity import Identity
from onelane.lane import audit
from onelane.lane.audit import LINES_PER_S, Audit
from onelane.testing.listener import MemoryCall

from tests.bounds import BOUND_S


class Peer(MemoryCall):
    def __init__(self, name: str = "ipv4:1.2.3.4:5") -> None:
        super().__init__("/t.T/M", (), trusted=False, deadline_s=None)
        self.name = name

    def peer(self) -> str:
        return self.name


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def refuse(log: Audit, call: Peer | None = None, cause: str = "it has none") -> None:
    log.refused(call or Peer(), status="UNAUTHENTICATED", reason="unauthenticated", cause=cause)


async def test_a_line_says_who_wanted_what_and_why_not(caplog: pytest.LogCaptureFixture) -> None:
    call = Peer()
    call.prove(Identity("ann", frozenset(), "jwt"))
    refuse(Audit("shop-0"), call)
    assert caplog.messages == [
        "auth.refused shard=shop-0 method=t.T/M peer=ipv4:1.2.3.4:5 subject=ann status=UNAUTHENTICATED "
        "reason=unauthenticated cause=it has none"
    ]
    assert caplog.records[0].name == "onelane.audit"


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Those of the audit log; other tests' threads may log too."""
    return [record.getMessage() for record in caplog.records if record.name == "onelane.audit"]


async def test_a_flood_is_a_few_lines_and_a_number(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    log = Audit("shop-0", now=clock)
    for _ in range(10_000):
        refuse(log)
    assert len(lines(caplog)) == LINES_PER_S
    clock.now += 1.0
    refuse(log)
    assert lines(caplog)[LINES_PER_S] == f"auth.refusals_left_out shard=shop-0 lines={10_000 - LINES_PER_S}"
    assert len(lines(caplog)) == LINES_PER_S + 2


async def test_the_number_is_told_also_where_the_flood_has_ended(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "TELL_S", 0.01)
    log = Audit("shop-0")
    for _ in range(LINES_PER_S + 3):
        refuse(log)
    async with asyncio.timeout(BOUND_S):
        while log.left_out:  # noqa: ASYNC110 - a timer tells it
            await asyncio.sleep(0)
    assert lines(caplog)[-1] == "auth.refusals_left_out shard=shop-0 lines=3"


@pytest.mark.parametrize("text", ["a\nauth.refused b", "a\x1b[31mb", "a b", "a\u2028b", "a\u202eb"])
async def test_no_text_of_a_stranger_begins_a_line_or_speaks_to_a_terminal(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    call = Peer(text)
    call.prove(Identity(text, frozenset(), "jwt"))
    refuse(Audit("shop-0"), call, cause=text)
    line = lines(caplog)[0]
    assert line.isprintable()
    assert line.count(" ") - text.count(" ") == 7


async def test_a_log_that_fails_harms_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(audit.log, "warning", fail)
    clock = Clock()
    log = Audit("shop-0", now=clock)
    for _ in range(LINES_PER_S + 2):
        refuse(log)
    clock.now += 1.0
    refuse(log)
    assert log.left_out == 0


async def test_a_line_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    refuse(Audit("shop-0"), Peer("x" * 100_000), cause="y" * 100_000)
    assert len(lines(caplog)[0]) < 1000
