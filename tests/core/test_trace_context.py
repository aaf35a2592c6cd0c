"""A trace passes through a call's metadata unchanged; what is malformed is no trace."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.core.trace_context import TraceContext, trace_metadata, trace_of_metadata

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


def test_no_trace_is_no_metadata() -> None:
    assert trace_metadata(None) == ()


@pytest.mark.parametrize("traceparent", [None, b"\0", "", "00-abc-def-01", f"00-{'0' * 32}-{'b' * 16}-01"])
def test_metadata_without_a_well_formed_trace_carry_none(traceparent: str | bytes | None) -> None:
    assert trace_of_metadata(traceparent, "vendor=1") is None
