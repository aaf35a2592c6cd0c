"""A trace passes through a call's metadata unchanged; what is malformed is no trace."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.core.trace_context import TraceContext, parse_traceparent, trace_metadata, trace_of_metadata

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

digits = "0123456789abcdef"
traces = st.builds(
    TraceContext,
    st.text(digits, min_size=32, max_size=32).filter(lambda text: text.strip("0")),
    st.text(digits, min_size=16, max_size=16).filter(lambda text: text.strip("0")),
    st.booleans(),
    st.sampled_from(["", "vendor=1"]),
)


@given(traces)
def test_a_trace_is_the_same_at_the_server_as_at_the_client(trace: TraceContext) -> None:
    metadata = dict(trace_metadata(trace))
    assert trace_of_metadata(metadata["traceparent"], metadata.get("tracestate")) == trace


@pytest.mark.parametrize(("length", "passed_on"), [(512, 512), (513, 0), (16_000, 0)])
def test_a_tracestate_of_more_than_512_characters_is_dropped_and_the_trace_goes_on(length: int, passed_on: int) -> None:
    trace = trace_of_metadata(PARENT, "v=".ljust(length, "x"))
    assert trace is not None
    assert (len(trace.tracestate), trace.traceparent()) == (passed_on, PARENT)


def test_no_trace_is_no_metadata() -> None:
    assert trace_metadata(None) == ()


@pytest.mark.parametrize("traceparent", [None, b"\0", "", "00-abc-def-01", f"00-{'0' * 32}-{'b' * 16}-01"])
def test_metadata_without_a_well_formed_trace_carry_none(traceparent: str | bytes | None) -> None:
    assert trace_of_metadata(traceparent, "vendor=1") is None


def test_a_traceparent_is_read_and_written() -> None:
    context = parse_traceparent(PARENT, "vendor=1")
    assert context == TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", True, "vendor=1")
    assert context.traceparent() == PARENT


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00-0-0-0",
        f"{PARENT}-more",
        PARENT.replace("00-", "ff-", 1),
        PARENT.upper(),
        f"00-{'0' * 32}-b7ad6b7169203331-01",
    ],
)
def test_a_malformed_traceparent_is_no_parent(text: str) -> None:
    assert parse_traceparent(text) is None


def test_a_later_version_of_traceparent_may_say_more() -> None:
    assert parse_traceparent(f"01{PARENT[2:]}-more") == parse_traceparent(PARENT)
