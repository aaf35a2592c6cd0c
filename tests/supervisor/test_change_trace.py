"""The supervisor's own span of a change of placement: one for each change, whatever becomes of it."""

from pathlib import Path
from typing import Any

import pytest
from onelane.core.trace_context import parse_traceparent
from onelane.supervisor import late_lives, own_placing, running_change
from onelane.supervisor.app import AppSupervisor
from onelane.supervisor.change_trace import ChangeTraces
from onelane.supervisor.shared_resources import TelemetryOptions
from onelane.supervisor.target import NotChanged, scaled
from onelane.telemetry.collector.collector import Collector

from tests.supervisor.fake_launcher import settle, until
from tests.supervisor.scripted_shards import ScriptedLauncher, scripted_app


@pytest.fixture
def launcher() -> ScriptedLauncher:
    return ScriptedLauncher()


def moves(app: AppSupervisor) -> list[dict[str, Any]]:
    """The spans `move` that the page has, the newest first."""
    traces = app._shared.collector.recent_traces
    spans = [traces.trace(row["trace_id"]) or [] for row in traces.summaries()]
    return [span for of_trace in spans for span in of_trace if span["name"] == "move"]


def events(span: dict[str, Any]) -> list[str]:
    return [f"{event['name']} {event['attributes'].get('onelane.shard', '')}".strip() for event in span["events"]]


def told_traces(launcher: ScriptedLauncher) -> set[str]:
    """The traces that shards were told of, with a change."""
    messages = [message for shard in launcher.launched for message in shard.line.sent]
    prepares = [message.prepare for message in messages if message.HasField("prepare")]
    prepares += [message.setup.change for message in messages if message.setup.HasField("change")]
    return {prepare.traceparent for prepare in prepares}


async def test_a_change_is_one_span_whose_context_every_life_is_given(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    async with scripted_app(tmp_path, launcher, 1) as app:
        await app.changes.reach(scaled(2))
        [span] = moves(app)
        assert (span["app"], span["shard"], span["parent_id"], span["error"]) == ("echo", "", "", "")
        assert span["attributes"] == {"onelane.epoch": 2, "onelane.change": "2 shards"}
        assert events(span)[0] == "onelane.change.begun"
        assert sorted(events(span)[1:]) == [
            "onelane.change.arrived echo-0",
            "onelane.change.arrived echo-1",
            "onelane.change.departed echo-0",
        ]
        [traceparent] = told_traces(launcher)
        trace = parse_traceparent(traceparent)
        assert trace is not None
        assert (trace.span_id, trace.sampled) == (span["span_id"], True)
        assert app._shared.collector.recent_traces.summaries()[0]["shards"] == []
        await app.changes.reach(scaled(1))
        assert len({span["span_id"] for span in moves(app)}) == 2


async def test_a_change_whose_new_life_does_not_start_is_a_span_that_has_failed(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    launcher.failing["echo-1"] = "no such module"
    async with scripted_app(tmp_path, launcher, 1) as app:
        with pytest.raises(NotChanged):
            await app.changes.reach(scaled(2))
        [span] = moves(app)
        assert (span["error"], events(span)) == ("NotChanged", [])


async def test_a_life_that_dies_or_hangs_in_a_change_is_told_by_its_span(
    tmp_path: Path, launcher: ScriptedLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_placing, "CHANGE_MARGIN_S", 0.01)
    for module in (late_lives, running_change):
        monkeypatch.setattr(module, "BETWEEN_LOOKS_S", 0.01)
    launcher.deadly.add(("echo-0.1", "prepare"))
    launcher.ignored.add(("echo-1.2", "prepare"))
    async with scripted_app(tmp_path, launcher, 2, drain_s=0.01) as app:
        await app.changes.reach(scaled(3))
        [span] = moves(app)
        assert span["error"] == "life_died"
        assert {"onelane.change.life_died echo-0", "onelane.change.life_killed echo-1"} <= set(events(span))
        # Also to those that were launched in the middle of it.
        [traceparent] = told_traces(launcher)
        assert span["span_id"] in traceparent
        await until(lambda: all(shard.is_up for shard in app.shards))


async def test_without_a_sampled_trace_nothing_is_recorded_and_no_life_is_told_one(
    tmp_path: Path, launcher: ScriptedLauncher
) -> None:
    async with scripted_app(tmp_path, launcher, 1) as app:
        for options in (TelemetryOptions(sampler="always_off"), TelemetryOptions(traces=False)):
            collector = app._shared.collector
            app.change_traces = ChangeTraces("echo", collector, sampler=options.span_sampler, records_all=False)
            await app.changes.reach(scaled(3 - len(app.shards)))
        assert (moves(app), told_traces(launcher)) == ([], {""})
        await settle()


async def test_with_tail_sampling_a_change_that_failed_is_kept(tmp_path: Path, launcher: ScriptedLauncher) -> None:
    async with scripted_app(tmp_path, launcher, 1, tail={}) as app:
        collector: Collector = app._shared.collector
        sampler = TelemetryOptions(sampler="always_off").span_sampler
        app.change_traces = ChangeTraces("echo", collector, sampler=sampler, records_all=True)
        await app.changes.reach(scaled(2))
        assert moves(app) == []
        launcher.failing["echo-2"] = "no such module"
        with pytest.raises(NotChanged):
            await app.changes.reach(scaled(3))
        assert [span["error"] for span in moves(app)] == ["NotChanged"]
