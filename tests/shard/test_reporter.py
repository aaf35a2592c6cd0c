"""Reports are numbered, complete, and not sent where nothing is new."""

import logging
from collections.abc import Iterable
from typing import Any

from onelane.telemetry import logs
from onelane.telemetry.codec import stall_from_proto
from onelane.telemetry.logs import LogBuffer
from onelane.telemetry.spans import PackedSpans
from onelane.telemetry.stalls import COMPUTING, Stall
from onelane.v1 import control_pb2

from tests.shard.parts import sent, setup, wired

STALL = Stall(at_ns=1, seconds=0.5, kind=COMPUTING, where="service.py:7", function="f")


async def reports_of(supervisor_end: Any) -> list[control_pb2.Report]:
    return [message.report for message in await sent(supervisor_end)]


def values_of(reports: Iterable[control_pb2.Report], name: str) -> list[float]:
    return [point.counter for report in reports for point in report.points if point.name == name]


async def test_reports_are_numbered_without_a_gap_and_a_shard_with_nothing_new_sends_none() -> None:
    parts, supervisor_end = wired()
    counter = parts.shard.stats.counter("apples")
    counter.add(2)
    await parts.reporter.report()
    await parts.reporter.report()
    counter.add(3)
    await parts.reporter.report()
    reports = await reports_of(supervisor_end)
    assert [report.seq for report in reports] == [1, 2]
    assert values_of(reports, "apples") == [2, 3]


async def test_a_collect_request_and_the_end_of_the_shard_are_answered_even_with_nothing_new() -> None:
    parts, supervisor_end = wired()
    await parts.reporter.report()
    await sent(supervisor_end)
    await parts.reporter.report(collect=7)
    await parts.reporter.report(final=True)
    assert [(report.collect, report.final) for report in await reports_of(supervisor_end)] == [(7, False), (0, True)]


async def test_spans_log_records_and_the_sizes_of_keyed_dicts_leave_with_one_report() -> None:
    described = setup()
    described.logs = described.tracing = True
    described.sampler = "always_on"
    parts, supervisor_end = wired(described)
    parts.shard.keyed("carts", int)["ada"] = 1
    span = parts.binding.tracer.start("work", "INTERNAL", None)
    parts.binding.tracer.end(span)
    assert parts.logs is not None
    record = logging.LogRecord("shop", logging.INFO, "shop.py", 1, "bought", (), None)
    record.onelane_shard = "echo-0"
    parts.logs.handle(record)
    await parts.reporter.report()
    await parts.reporter.report(collect=1)
    first, second = await reports_of(supervisor_end)
    assert [span.name for packed in first.spans for span in PackedSpans(packed)] == ["work"]
    assert [record.text for record in logs.unpack_logs(first.logs)] == ["bought"]
    assert dict(first.keyed) == {"carts": 1}
    assert (list(second.spans), second.logs) == ([], b"")


async def test_every_stall_is_counted_and_those_that_were_logged_are_listed_once() -> None:
    parts, supervisor_end = wired()
    parts.reporter.add_stall(STALL, is_logged=True)
    parts.reporter.add_stall(STALL, is_logged=False)
    await parts.reporter.report()
    await parts.reporter.report(collect=1)
    first, second = await reports_of(supervisor_end)
    assert values_of([first], "onelane.stalls") == [2]
    assert [stall_from_proto(stall) for stall in first.stalls] == [STALL]
    assert list(second.stalls) == []


async def test_what_did_not_fit_into_a_tick_is_counted_as_dropped() -> None:
    described = setup()
    described.logs = True
    parts, supervisor_end = wired(described)
    assert isinstance(parts.logs, LogBuffer)
    parts.binding.tracer.dropped, parts.logs.dropped, parts.binding.tracer.unfollowed = 3, 4, 5
    await parts.reporter.report()
    await parts.reporter.report(collect=1)
    first, second = await reports_of(supervisor_end)
    points = [point for point in first.points if point.name == "onelane.telemetry.dropped"]
    dropped = {(p.attributes["onelane.signal"], p.attributes["onelane.reason"]): p.counter for p in points}
    assert dropped == {("spans", "tick_full"): 3, ("logs", "tick_full"): 4, ("spans", "remote_rate"): 5}
    assert values_of([second], "onelane.telemetry.dropped") == []
