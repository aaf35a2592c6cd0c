"""OpenTelemetry's runtime context on a lane."""

from pathlib import Path

from tests.running_app import ROOT


def test_lanes_context_is_what_opentelemetry_finds_by_name() -> None:
    from importlib.metadata import entry_points

    from onelane.telemetry.otel.context import LaneContext

    (entry_point,) = entry_points(group="opentelemetry_context", name="onelane")
    assert entry_point.load() is LaneContext
    assert Path(ROOT / "pyproject.toml").exists()
