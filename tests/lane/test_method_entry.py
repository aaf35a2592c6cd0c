"""What a lane knows of a method before its first call, and how it counts."""

import grpc
import pytest
from onelane.core import keys
from onelane.lane.method_entry import Entry, HiddenEntry
from onelane.server.methods import Method
from onelane.telemetry.stats import Stats

from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest

RULE = keys.field_key(EchoRequest.DESCRIPTOR, ["key"])


async def handler(request: EchoRequest, context: object) -> EchoReply:
    return EchoReply(text=request.text)


def an_entry(stats: Stats | None = None, *, path: str = "/t.T/M", rule: object = RULE, **more: bool) -> Entry:
    is_stream = more.get("response_streaming", False)
    method = Method(
        path,
        handler,
        True,
        False,
        is_stream,
        EchoRequest.FromString,
        EchoReply.SerializeToString,
        rule,  # type: ignore[arg-type]
        is_free=more.get("is_free", False),
    )
    return Entry(method, stats or Stats())


@pytest.mark.parametrize(
    ("entry", "takes_turns"),
    [
        (an_entry(), True),
        (an_entry(is_free=True), False),
        (an_entry(response_streaming=True), False),
        (an_entry(rule=keys.ANY), False),
    ],
    ids=["keyed and unary", "free", "a stream", "without a key"],
)
def test_only_unary_calls_with_a_key_take_turns(entry: Entry, takes_turns: bool) -> None:
    assert entry.takes_turns is takes_turns


def test_only_a_stream_without_a_key_is_ended_by_a_drain() -> None:
    assert an_entry(rule=keys.ANY, response_streaming=True).may_be_endless
    assert not an_entry(response_streaming=True).may_be_endless


@pytest.mark.parametrize(("path", "is_ours"), [("/grpc.health.v1.Health/Check", True), ("/t.T/M", False)])
def test_the_runtimes_own_services_are_known_by_their_package(path: str, is_ours: bool) -> None:
    assert an_entry(path=path).is_ours is is_ours


def test_each_status_is_counted_apart_with_its_duration() -> None:
    stats = Stats()
    entry = an_entry(stats)
    entry.count(grpc.StatusCode.OK, 0.1)
    entry.count(grpc.StatusCode.NOT_FOUND, 0.2)
    entry.count(grpc.StatusCode.NOT_FOUND, 0.3)
    points = [point for point in stats.take() if point.instrument.name == "onelane.calls"]
    counted = {dict(point.attributes)["rpc.response.status_code"]: point.value for point in points}
    assert counted == {"OK": 1, "NOT_FOUND": 2}


def test_a_hidden_method_has_no_series_and_says_when_a_call_has_ended() -> None:
    ended: list[int] = []
    entry = HiddenEntry(an_entry().method, ended=lambda: ended.append(1))
    entry.count(grpc.StatusCode.OK, 0.1)
    entry.count(grpc.StatusCode.INTERNAL, 0.1)
    assert ended == [1, 1]
