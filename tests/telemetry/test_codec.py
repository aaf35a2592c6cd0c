"""Points and stalls are the same after the control connection, through bytes."""

import pytest
from onelane.telemetry import codec
from onelane.telemetry.histogram import Buckets, Exemplar
from onelane.telemetry.stalls import Stall
from onelane.telemetry.stats import Instrument, Point
from onelane.v1 import control_pb2

EXEMPLAR = Exemplar(0.5, "ab" * 16, "cd" * 8, 1_700_000_000_000_000_000)
HISTOGRAM = Buckets({-3: 2, 40: 1}, 7.25, 4, 5, (EXEMPLAR,))
POINTS = [
    Point(Instrument("calls", "{call}", "Calls answered"), "counter", (("a", "1"), ("b", "x")), 3.0),
    Point(Instrument("depth"), "gauge", (), -2.5),
    Point(Instrument("typed"), "up_down_counter", (("b", True), ("i", -5), ("x", 0.5)), 1.0),
    Point(Instrument("took", "s"), "histogram", (("a", "1"),), HISTOGRAM),
]


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.kind)
def test_a_point_is_the_same_after_a_trip_through_bytes(point: Point) -> None:
    packed = codec.point_to_proto(point).SerializeToString()
    unpacked = codec.point_from_proto(control_pb2.Point.FromString(packed))
    assert unpacked == point
    assert [type(value) for _, value in unpacked.attributes] == [type(value) for _, value in point.attributes]


def test_a_stall_is_the_same_after_a_trip_through_bytes() -> None:
    stall = Stall(
        kind="blocked",
        seconds=0.25,
        at_ns=1_700_000_000_000_000_000,
        where="service.py:3",
        function="wait",
        innermost="time.sleep",
        method="t.T/M",
        trace_id="ab" * 16,
        others=("t.T/Other", "t.T/Third"),
    )
    packed = codec.stall_to_proto(stall).SerializeToString()
    assert codec.stall_from_proto(control_pb2.Stall.FromString(packed)) == stall


def test_exemplars_and_scale_of_a_histogram_arrive() -> None:
    """Equality of `Buckets` leaves exemplars out."""
    packed = codec.point_to_proto(POINTS[-1]).SerializeToString()
    value = codec.point_from_proto(control_pb2.Point.FromString(packed)).value
    assert isinstance(value, Buckets)
    assert (value.exemplars, value.scale) == ((EXEMPLAR,), 5)
