"""Trace context and sampling, as W3C and OpenTelemetry write them."""

from enum import StrEnum
from random import Random

import pytest
from onelane.core.trace_context import UNSAMPLED, TraceContext, parse_traceparent
from onelane.telemetry.sampling import DEFAULT_TRACES_PER_S, RATE_LIMITED, Sampler, sampler_of
from onelane.telemetry.spans import PackedSpans, SpanRecord, pack_spans
from onelane.telemetry.tracer import Tracer, all_attributes
from onelane.telemetry.values import attribute_value
from onelane.testing.clock import ManualClock
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


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


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.5, 1.0])
def test_the_ratio_sampler_decides_as_the_sdk_does(ratio: float) -> None:
    rng, sdk = Random(1), TraceIdRatioBased(ratio)
    sampler = sampler_of({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": str(ratio)})
    for _ in range(500):
        trace_id = rng.getrandbits(128)
        ours = sampler.samples(f"{trace_id:032x}", None)
        assert ours is sdk.should_sample(None, trace_id, "x").decision.is_sampled()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("name", "parent_sampled", "sampled"),
    [
        ("parentbased_always_off", True, True),
        ("parentbased_always_on", False, False),
        ("always_on", False, True),
        ("always_off", True, False),
    ],
)
def test_a_parent_decides_where_it_is_asked(name: str, parent_sampled: bool, sampled: bool) -> None:
    parent = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", parent_sampled)
    sampler = sampler_of({"OTEL_TRACES_SAMPLER": name})
    assert sampler.samples(parent.trace_id, parent) is sampled


def tracer(sampler: Sampler, *, records_all: bool = False, clock: ManualClock | None = None) -> Tracer:
    return Tracer(shard="a-0", sampler=sampler, clock=clock or ManualClock(), rng=Random(1), records_all=records_all)


def test_a_span_that_is_not_sampled_hands_its_parent_on() -> None:
    parent = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", False)
    assert tracer(sampler_of({})).start("x", "SERVER", parent) is parent


def test_a_child_stays_in_its_trace_with_an_id_of_its_own() -> None:
    parent = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", True, "vendor=1")
    made = tracer(sampler_of({})).start("x", "SERVER", parent)
    assert isinstance(made, SpanRecord)
    assert (made.context.trace_id, made.parent_id) == (parent.trace_id, parent.span_id)
    assert made.context.tracestate == "vendor=1"
    assert made.context.span_id != parent.span_id


@pytest.mark.parametrize("parent_based", [True, False])
def test_what_begins_in_a_call_that_was_not_sampled_is_not_either(parent_based: bool) -> None:
    assert tracer(Sampler(parent_based, 0.5)).start("inner", "CLIENT", UNSAMPLED) is UNSAMPLED


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 1.0])
def test_roots_are_sampled_as_the_sdk_would_sample_their_ids(ratio: float) -> None:
    ours, sdk = tracer(Sampler(True, ratio), records_all=True), TraceIdRatioBased(ratio)
    for _ in range(300):
        made = ours.start("x", "SERVER", None)
        assert isinstance(made, SpanRecord)
        decided = sdk.should_sample(None, int(made.trace_id, 16), "x").decision
        assert made.sampled is decided.is_sampled()  # type: ignore[no-untyped-call]
        assert (len(made.trace_id), len(made.span_id), made.parent_id) == (32, 16, "")


def test_where_nobody_has_said_some_traces_of_a_second_are_recorded() -> None:
    clock = ManualClock()
    ours = tracer(sampler_of({"OTEL_TRACES_SAMPLER": RATE_LIMITED}), clock=clock)

    def recorded() -> int:
        return sum(isinstance(ours.start("x", "SERVER", None), SpanRecord) for _ in range(100))

    assert recorded() == DEFAULT_TRACES_PER_S
    clock.advance(0.5)
    ours.take()
    assert recorded() == DEFAULT_TRACES_PER_S / 2


def test_a_batch_arrives_as_it_was_packed() -> None:
    ours = tracer(sampler_of({}))
    whole = ours.start("a/B", "SERVER", TraceContext("0" * 31 + "1", "0" * 15 + "2", True, "vendor=1"), remote=True)
    assert isinstance(whole, SpanRecord)
    whole.set_attribute("room.size", 3)
    whole.add_event("joined", {"player": "ann"}, 5)
    ours.end_call(whole, status="INTERNAL", hop="direct", server=True)
    ours.end(ours.start("plain", "INTERNAL", None))
    found = PackedSpans(pack_spans(ours.take()))
    assert [span.name for span in found] == ["a/B", "plain"]
    as_made = {"is_ok": False, "links": None}
    assert vars(found[0]) | as_made == vars(whole) | as_made
    assert all_attributes(found[0], "a-0") == {
        "onelane.shard": "a-0",
        "rpc.system.name": "grpc",
        "rpc.method": "a/B",
        "rpc.response.status_code": "INTERNAL",
        "onelane.hop": "direct",
        "room.size": 3,
        "error.type": "INTERNAL",
    }


def test_what_is_no_plain_value_spoils_no_batch() -> None:
    class Name(StrEnum):
        ODD = "odd"

    ours = tracer(sampler_of({}))
    for name in (Name.ODD, "usual"):
        span = ours.start(name, "INTERNAL", None)
        assert isinstance(span, SpanRecord)
        span.set_attribute("raw", object if name is Name.ODD else 1)
        span.add_event(name, {"when": {1, 2}}, 5)
        ours.end(span)
    found = PackedSpans(pack_spans(ours.take()))
    assert [span.name for span in found] == ["odd", "usual"]
    assert found[1].attributes == {"raw": 1}
    assert found[0].events == [("odd", {"when": "{1, 2}"}, 5)]


def test_a_later_version_of_traceparent_may_say_more() -> None:
    assert parse_traceparent(f"01{PARENT[2:]}-more") == parse_traceparent(PARENT)


def test_a_sampler_that_nobody_knows_is_the_usual_one() -> None:
    assert sampler_of({"OTEL_TRACES_SAMPLER": "jaeger_remote"}) == sampler_of({})
    assert sampler_of({"OTEL_TRACES_SAMPLER": "parentbased_nope"}) == sampler_of({})


def test_a_value_that_cannot_say_what_it_is_is_told_by_its_type() -> None:
    class Shy(str):
        def __str__(self) -> str:
            raise RuntimeError

    class Mute:
        def __str__(self) -> str:
            raise RuntimeError

    found = [attribute_value(value) for value in (Shy("x"), Mute(), 2**63, 2**20_000, [[1], Mute()])]
    assert [str(value).rpartition(".")[2] for value in found[:2]] == ["x", "Mute>"]
    assert found[2] == str(2**63)
    assert found[3] == "<int>"
    assert found[4][0] == "[1]"
    assert type(found[0]) is str


def test_attributes_of_any_type_become_what_opentelemetry_has() -> None:
    class Size(int):
        pass

    class Colour(StrEnum):
        RED = "red"

    values = [True, 3, 0.5, "x", Size(4), Colour.RED, (1, Colour.RED), b"raw", None]
    found = [attribute_value(value) for value in values]
    assert found == [True, 3, 0.5, "x", 4, "red", [1, "red"], "b'raw'", "None"]
    assert {type(value) for value in found} == {bool, int, float, str, list}
