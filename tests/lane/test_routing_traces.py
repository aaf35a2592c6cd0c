"""What a lane takes of the trace and the baggage that a call brings."""

from onelane.core import keys
from onelane.core.placement import Member, Placement
from onelane.core.trace_context import MAX_BAGGAGE, UNSAMPLED, TraceContext
from onelane.lane.method_entry import Entry
from onelane.lane.routing import Router
from onelane.server.methods import Method
from onelane.telemetry.stats import Stats
from onelane.telemetry.tracer import Span
from onelane.testing.listener import MemoryCall

from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest

SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
RULE = keys.field_key(EchoRequest.DESCRIPTOR, ["key"])
METHOD = Method("/t.T/M", print, True, False, False, EchoRequest.FromString, EchoReply.SerializeToString, RULE)


def routed(*metadata: tuple[str, str], trusted: bool = False, span: Span = None) -> MemoryCall:
    """A call that a router has read which follows no sampled flag."""
    placement = Placement(1, (Member("a", "127.0.0.1:1", "a.sock"),))
    router = Router("a", placement, follow=lambda trace: trace._replace(sampled=False))
    call = MemoryCall("/t.T/M", metadata, trusted=trusted, deadline_s=None)
    call.span = span
    router.route(Entry(METHOD, Stats()), call, EchoRequest(key="k").SerializeToString())
    return call


def is_sampled(call: MemoryCall) -> bool:
    assert isinstance(call.parent, TraceContext)
    return call.parent.sampled


def test_the_sampled_flag_of_a_client_is_followed_as_the_tracer_says() -> None:
    assert not is_sampled(routed(("traceparent", SAMPLED)))


def test_the_flag_of_a_sibling_and_of_a_call_that_is_not_recorded_is_taken_as_it_is() -> None:
    assert is_sampled(routed(("traceparent", SAMPLED), trusted=True))
    assert is_sampled(routed(("traceparent", SAMPLED), span=UNSAMPLED))


def test_a_baggage_that_is_too_long_is_dropped() -> None:
    longest = "a=".ljust(MAX_BAGGAGE, "x")
    assert routed(("baggage", longest)).baggage == longest
    assert routed(("baggage", f"{longest}x")).baggage == routed().baggage
