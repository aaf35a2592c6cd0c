"""Frames between the sink and its exporter process arrive whole or not at all."""

import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.telemetry.histogram import Buckets, Exemplar
from onelane.telemetry.sinks.otlp.pipe import pack_points, read_frame, unpack_points, write_frame
from onelane.telemetry.stats import Instrument, Point

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    local, remote = socket.socketpair()
    with local, remote:
        yield local, remote


def test_frames_arrive_in_order_as_they_were_written(pair: Pair) -> None:
    local, remote = pair
    messages = [("sent", "", 0), [("lobby", "lobby-0", b"\x00" * 5000)], b""]
    for message in messages:
        write_frame(local, message)
    assert [read_frame(remote) for _ in messages] == messages


@pytest.mark.parametrize("cut", [0, 3, 4, 9])
def test_a_peer_that_closes_within_a_frame_ends_the_stream(pair: Pair, cut: int) -> None:
    local, remote = pair
    write_frame(local, "a message")
    frame = remote.recv(1000)
    assert len(frame) > 9
    local.sendall(frame[:cut])
    local.close()
    assert read_frame(remote) is None


values = st.floats(1e-6, 1e6)
histograms = st.builds(
    lambda recorded, at_ns: Buckets.of(recorded, (Exemplar(recorded[0], "a" * 32, "b" * 16, at_ns),)),
    st.lists(values, min_size=1, max_size=5),
    st.integers(0, 2**63),
)


@given(values, histograms)
def test_points_are_the_same_after_packing(value: float, histogram: Buckets) -> None:
    attributes = (("onelane.app", "lobby"), ("rpc.method", "a/B"))
    points = [
        Point(Instrument("onelane.calls", "{call}", "Calls"), "counter", attributes, value),
        Point(Instrument("took", "s"), "histogram", (), histogram),
    ]
    unpacked = unpack_points(pack_points(points))
    assert unpacked == points
    assert isinstance(unpacked[1].value, Buckets)
    assert unpacked[1].value.exemplars == histogram.exemplars
