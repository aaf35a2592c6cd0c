"""OpenTelemetry's runtime context on a lane."""

import contextvars
from importlib.metadata import entry_points

import pytest
from onelane.core import context as core_context
from onelane.telemetry.otel.context import LaneContext
from opentelemetry import baggage


def test_opentelemetry_finds_the_context_of_lanes_by_name() -> None:
    (entry_point,) = entry_points(group="opentelemetry_context", name="onelane")
    assert entry_point.load() is LaneContext


@pytest.fixture
def lane_context() -> LaneContext:
    return LaneContext()


def attached(lane_context: LaneContext, value: str) -> str:
    """Attach, look and detach in a context of its own, so that the test leaves none."""
    token = lane_context.attach(baggage.set_baggage("room", value, lane_context.get_current()))
    current = str(baggage.get_baggage("room", lane_context.get_current()))
    lane_context.detach(token)
    return current


def test_outside_any_call_the_context_is_empty(lane_context: LaneContext) -> None:
    assert contextvars.Context().run(lane_context.get_current) == {}


def test_an_attached_context_is_the_current_one_until_it_is_detached(lane_context: LaneContext) -> None:
    def nested() -> tuple[str, str, dict[str, object]]:
        token = lane_context.attach(baggage.set_baggage("room", "outer", lane_context.get_current()))
        inner = attached(lane_context, "inner")
        outer = str(baggage.get_baggage("room", lane_context.get_current()))
        lane_context.detach(token)
        return inner, outer, dict(lane_context.get_current())

    assert contextvars.Context().run(nested) == ("inner", "outer", {})


def test_baggage_that_is_attached_is_what_outgoing_calls_carry(lane_context: LaneContext) -> None:
    def carried() -> str:
        lane_context.attach(baggage.set_baggage("room", "r 1", lane_context.get_current()))
        attached_context = core_context.attached_context()
        assert attached_context is not None
        return attached_context.baggage

    assert contextvars.Context().run(carried) == "room=r+1"
