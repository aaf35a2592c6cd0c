"""The parts of a shard get what its setup says, and making them starts nothing."""

import asyncio

import pytest
from onelane.errors import BadConfig, BadService
from onelane.shard.wiring import Environment, build_parts
from onelane.telemetry.tracer import Tracer
from onelane.testing import ManualClock

from tests.shard.parts import sent, setup, wired


async def test_making_the_parts_sends_nothing_and_starts_no_task() -> None:
    before = asyncio.all_tasks()
    _, supervisor_end = wired()
    assert asyncio.all_tasks() == before
    assert await sent(supervisor_end) == []


async def test_the_parts_share_one_lane_one_clock_and_one_set_of_statistics() -> None:
    clock = ManualClock(100.0)
    supervisor_end, control = type(wired()[1]).pair()
    described = setup(max_rate_per_key=0.5)
    described.tracing, described.sampler = True, "always_on"
    parts = build_parts(described, control, Environment(clock=clock, alarms=clock))
    parts.shard.stats.counter("apples").add()
    span = parts.binding.tracer.start("work", "INTERNAL", None)
    clock.advance(3.0)
    parts.binding.tracer.end(span)
    await parts.reporter.report()
    (report,) = [message.report for message in await sent(supervisor_end)]
    assert "apples" in {point.name for point in report.points}
    assert (span.end_ns - span.start_ns) / 1e9 == 3.0
    assert parts.lane.name == parts.binding.name == parts.shard.name == "echo-0"


@pytest.mark.parametrize(("tracing", "idle"), [(False, True), (True, False)])
async def test_nothing_is_sampled_where_no_sink_asks_for_traces(tracing: bool, idle: bool) -> None:
    described = setup()
    described.tracing, described.sampler = tracing, "always_on"
    tracer: Tracer = wired(described)[0].binding.tracer
    assert tracer.idle is idle


async def test_log_records_are_kept_only_where_a_sink_asks_for_them() -> None:
    described = setup()
    assert wired(described)[0].logs is None
    described.logs = True
    assert wired(described)[0].logs is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"config_type": "tests.echo.settings:EchoSettings", "config": {"limit": 0}}, "limit: Input should be"),
        ({"membership": "nobody"}, "'nobody' is not installed"),
        ({"listener": "nobody"}, "'nobody' is not installed"),
    ],
)
async def test_settings_that_do_not_fit_and_unknown_plugs_are_refused(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises((BadConfig, BadService), match=message):
        wired(setup(**settings))  # type: ignore[arg-type]
