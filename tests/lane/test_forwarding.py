"""What becomes of a call that another shard owns: forwarded once, ended once, and counted once."""

from typing import Any

import grpc
import pytest
from onelane.core.hop import SERVED
from onelane.core.placement import Placement
from onelane.lane.unary_forward import NOT_HOME
from onelane.telemetry.sampling import Sampler

from tests.lane.test_lane import B, Bench, SaysWhatItWasTold


async def test_a_call_that_cannot_be_sent_on_has_a_status_and_ends_the_span_of_its_hop() -> None:
    bench = Bench(Placement(7, (B,)), SaysWhatItWasTold(), sampler=Sampler(parent_based=True, ratio=1.0))
    call = await bench.call()
    assert call.code_now is grpc.StatusCode.INTERNAL
    assert (bench.forwarder.sent, bench.lane.in_flight, bench.counted()) == (["b"], 0, 1)
    hops = [span for span in bench.tracer.take() if span.kind == "CLIENT"]
    assert [(span.hop, span.status) for span in hops] == [("forwarded", "INTERNAL")]


@pytest.mark.parametrize(
    ("trailers", "counted", "passed_on"),
    [(((SERVED, "b"),), 0, ()), ((), 1, ()), (((NOT_HOME, "7"),), 1, ())],
    ids=["the owner has counted it", "it never came there", "the owner refused it"],
)
async def test_a_forwarded_call_is_counted_here_only_where_the_owner_did_not(
    trailers: Any, counted: int, passed_on: Any
) -> None:
    code = grpc.StatusCode.OK if (SERVED, "b") in trailers else grpc.StatusCode.UNAVAILABLE
    bench = Bench(Placement(7, (B,)), SaysWhatItWasTold([(code, trailers)]))
    call = await bench.call()
    assert (bench.counted(), tuple(call.trailers)) == (counted, passed_on)


async def test_a_call_that_goes_on_from_a_sibling_is_counted_by_its_owner_alone() -> None:
    """A sibling that is one placement behind has sent it here: it learns that a third shard has counted it."""
    bench = Bench(Placement(7, (B,)), SaysWhatItWasTold([(grpc.StatusCode.OK, ((SERVED, "b"),))]))
    call = await bench.call(forwarded=True, epoch=6)
    assert (bench.counted(), tuple(call.trailers)) == (0, ((SERVED, "b"),))
    assert (bench.forwarder.sent, bench.forwarder.epochs) == (["b"], [7])
