"""A stream of xDS, "state of the world": bytes in, bytes out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.cluster.xds.resources import CLUSTER, ENDPOINTS, LISTENER, RESOURCE_KINDS, ROUTE
from onelane.cluster.xds.state_of_the_world import StateOfTheWorld
from onelane.cluster.xds.subscription import MAX_NAME, MAX_SUBSCRIBED, XdsRefused
from onelane.v1 import xds_pb2
from onelane.wire.statuses import INVALID_ARGUMENT, RESOURCE_EXHAUSTED

from tests.cluster.xds.apps import placement, resources, url

NONE = resources()
ONE = resources(lobby=placement(1))
BOTH = resources(lobby=placement(1, 2), shop=placement(7))


def request(kind: str, *names: str, nonce: str = "", nack: str | None = None) -> bytes:
    message = xds_pb2.DiscoveryRequest(type_url=url(kind), resource_names=names, response_nonce=nonce)
    if nack is not None:
        message.error_detail.message = nack
    return message.SerializeToString()


def responses(stream: StateOfTheWorld, now: object = ONE) -> list[tuple[str, list[str], str]]:
    """Type, names and nonce of each response that is due."""
    rows = [xds_pb2.DiscoveryResponse.FromString(data) for data in stream.respond(now)]  # type: ignore[arg-type]
    return [(row.type_url.rpartition("/")[2], [_name(any_) for any_ in row.resources], row.nonce) for row in rows]


def _name(packed: object) -> str:
    kinds = {CLUSTER: xds_pb2.Cluster, LISTENER: xds_pb2.Listener, ROUTE: xds_pb2.RouteConfiguration}
    kind = packed.type_url.rpartition("/")[2]  # type: ignore[attr-defined]
    if kind == ENDPOINTS:
        return xds_pb2.ClusterLoadAssignment.FromString(packed.value).cluster_name  # type: ignore[attr-defined]
    return kinds[kind].FromString(packed.value).name  # type: ignore[attr-defined, no-any-return]


def test_what_is_subscribed_to_is_sent_once() -> None:
    stream = StateOfTheWorld()
    stream.receive(request(LISTENER, "lobby"))
    assert responses(stream, BOTH) == [(LISTENER, ["lobby"], "1")]
    stream.receive(request(LISTENER, "lobby", nonce="1"))
    assert responses(stream, BOTH) == []


def test_what_is_referred_to_comes_first() -> None:
    stream = StateOfTheWorld()
    for kind in reversed(RESOURCE_KINDS):
        stream.receive(request(kind, "lobby"))
    assert [kind for kind, _, _ in responses(stream)] == [CLUSTER, ENDPOINTS, LISTENER, ROUTE]


def test_a_change_is_sent_after_the_acknowledgement_as_it_is_then() -> None:
    stream = StateOfTheWorld()
    stream.receive(request(ENDPOINTS, "lobby"))
    assert responses(stream) == [(ENDPOINTS, ["lobby"], "1")]
    assert responses(stream, BOTH) == []
    stream.receive(request(ENDPOINTS, "lobby", nonce="1"))
    assert responses(stream, BOTH) == [(ENDPOINTS, ["lobby"], "2")]


def test_a_client_that_never_acknowledges_is_sent_one_response_of_each_type() -> None:
    stream = StateOfTheWorld()
    sent = 0
    for count in range(1, 50):
        for kind in RESOURCE_KINDS:
            stream.receive(request(kind, "lobby"))
        sent += len(responses(stream, resources(lobby=placement(*range(1, count + 1)))))
    assert sent == len(RESOURCE_KINDS)


def test_a_refused_response_is_told_once_and_not_sent_again() -> None:
    stream = StateOfTheWorld()
    stream.receive(request(CLUSTER, "lobby"))
    responses(stream)
    for _ in range(100):
        stream.receive(request(CLUSTER, "lobby", nonce="1", nack="ring too large"))
        assert responses(stream) == []
    assert [(nack.kind, nack.nonce, nack.reason) for nack in stream.nacks] == [(CLUSTER, "1", "ring too large")]
    assert responses(stream, BOTH) == [(CLUSTER, ["lobby"], "2")]


def test_a_request_with_another_nonce_than_the_last_is_of_the_past() -> None:
    stream = StateOfTheWorld()
    stream.receive(request(ENDPOINTS, "lobby"))
    responses(stream)
    for nonce in ("0", "2", "x" * 1000):
        stream.receive(request(ENDPOINTS, "shop", nonce=nonce))
        assert responses(stream, BOTH) == []
    assert stream.name_count == 1


def test_a_first_request_may_have_the_nonce_of_another_stream() -> None:
    stream = StateOfTheWorld()
    stream.receive(request(LISTENER, "lobby", nonce="77"))
    assert responses(stream) == [(LISTENER, ["lobby"], "1")]


def test_more_names_before_the_first_response_has_come_are_sent_after_it() -> None:
    stream = StateOfTheWorld()
    stream.receive(request(ENDPOINTS, "lobby"))
    assert responses(stream, BOTH) == [(ENDPOINTS, ["lobby"], "1")]
    stream.receive(request(ENDPOINTS, "lobby", "shop"))
    assert responses(stream, BOTH) == []
    stream.receive(request(ENDPOINTS, "lobby", "shop", nonce="1"))
    assert responses(stream, BOTH) == [(ENDPOINTS, ["shop"], "2")]


def test_a_response_of_clusters_has_all_that_are_wanted() -> None:
    """One that is left out does not exist."""
    stream = StateOfTheWorld()
    stream.receive(request(CLUSTER, "lobby", "shop"))
    responses(stream, BOTH)
    stream.receive(request(CLUSTER, "lobby", "shop", nonce="1"))
    grown = resources(lobby=placement(1, 2, 3), shop=placement(7))
    assert responses(stream, grown) == [(CLUSTER, ["lobby", "shop"], "2")]


@pytest.mark.parametrize("names", [[], ["*"], ["*", "lobby"]])
def test_no_names_or_a_star_ask_for_all(names: list[str]) -> None:
    stream = StateOfTheWorld()
    stream.receive(request(CLUSTER, *names))
    assert responses(stream, NONE) == [(CLUSTER, [], "1")]
    stream.receive(request(CLUSTER, *names, nonce="1"))
    assert responses(stream, BOTH) == [(CLUSTER, ["lobby", "shop"], "2")]
    stream.receive(request(CLUSTER, *names, nonce="2"))
    assert responses(stream, resources(shop=placement(7))) == [(CLUSTER, ["shop"], "3")]


def test_no_names_of_endpoints_are_none() -> None:
    stream = StateOfTheWorld()
    stream.receive(request(ENDPOINTS))
    stream.receive(request(ROUTE, "*"))
    assert responses(stream, BOTH) == []


def test_who_has_named_something_and_wants_it_no_more_wants_nothing() -> None:
    stream = StateOfTheWorld()
    stream.receive(request(CLUSTER, "lobby"))
    responses(stream)
    stream.receive(request(CLUSTER, nonce="1"))
    stream.receive(request(CLUSTER, nonce="1"))
    assert responses(stream, BOTH) == []
    stream.receive(request(CLUSTER, "lobby", nonce="1"))
    assert responses(stream, BOTH) == [(CLUSTER, ["lobby"], "2")]


def test_who_has_all_clusters_is_sent_routes_once_it_has_taken_those_and_their_endpoints() -> None:
    """Envoy calls the cluster that a route names at once."""
    stream = StateOfTheWorld()
    stream.receive(request(CLUSTER))
    stream.receive(request(ROUTE, "lobby"))
    stream.receive(request(LISTENER))
    assert responses(stream) == [(CLUSTER, ["lobby"], "1")]
    stream.receive(request(CLUSTER, nonce="1"))
    assert responses(stream) == []
    stream.receive(request(ENDPOINTS, "lobby"))
    assert responses(stream) == [(ENDPOINTS, ["lobby"], "2")]
    stream.receive(request(ENDPOINTS, "lobby", nonce="2"))
    assert responses(stream) == [(LISTENER, ["lobby"], "3"), (ROUTE, ["lobby"], "4")]
    stream.receive(request(LISTENER, nonce="3"))
    stream.receive(request(ROUTE, "lobby", "shop", nonce="4"))
    more = resources(lobby=placement(1), shop=placement(7))
    assert responses(stream, more) == [(CLUSTER, ["lobby", "shop"], "5")]
    stream.receive(request(CLUSTER, nonce="5"))
    assert responses(stream, more) == []
    stream.receive(request(ENDPOINTS, "lobby", "shop", nonce="2"))
    assert responses(stream, more) == [(ENDPOINTS, ["shop"], "6")]
    stream.receive(request(ENDPOINTS, "lobby", "shop", nonce="6"))
    assert responses(stream, more) == [(LISTENER, ["lobby", "shop"], "7"), (ROUTE, ["shop"], "8")]


def test_where_there_are_no_clusters_routes_wait_for_nothing_more() -> None:
    stream = StateOfTheWorld()
    stream.receive(request(CLUSTER))
    stream.receive(request(LISTENER))
    assert responses(stream, NONE) == [(CLUSTER, [], "1")]
    stream.receive(request(CLUSTER, nonce="1"))
    assert responses(stream, NONE) == [(LISTENER, [], "2")]


def test_a_listener_that_does_not_exist_is_left_out_and_sent_once_it_does() -> None:
    stream = StateOfTheWorld()
    stream.receive(request(LISTENER, "nowhere", "lobby"))
    assert responses(stream, NONE) == [(LISTENER, [], "1")]
    stream.receive(request(LISTENER, "nowhere", "lobby", nonce="1"))
    assert responses(stream, NONE) == []
    assert responses(stream, ONE) == [(LISTENER, ["lobby"], "2")]


def test_endpoints_that_do_not_exist_are_waited_for() -> None:
    stream = StateOfTheWorld()
    stream.receive(request(ENDPOINTS, "shop"))
    assert responses(stream) == []
    assert responses(stream, BOTH) == [(ENDPOINTS, ["shop"], "1")]


def test_a_type_that_is_not_ours_is_left_unanswered() -> None:
    stream = StateOfTheWorld()
    for number in range(1000):
        stream.receive(request(f"envoy.service.runtime.v3.Runtime{number}", "lobby"))
    assert responses(stream) == []
    assert stream.name_count == 0


@pytest.mark.parametrize(
    ("data", "code", "text"),
    [
        (b"\xff", INVALID_ARGUMENT, "no DiscoveryRequest"),
        (b"", INVALID_ARGUMENT, "no type_url"),
        (request(ENDPOINTS, "x" * (MAX_NAME + 1)), INVALID_ARGUMENT, "characters"),
        (request(ENDPOINTS, *map(str, range(100_000))), RESOURCE_EXHAUSTED, "100000 names"),
    ],
)
def test_what_cannot_be_served_ends_the_stream_with_the_reason(data: bytes, code: int, text: str) -> None:
    with pytest.raises(XdsRefused, match=text) as refused:
        StateOfTheWorld().receive(data)
    assert refused.value.code == code


def test_as_many_names_as_are_allowed_are() -> None:
    stream = StateOfTheWorld()
    for turn in range(5):
        stream.receive(request(ENDPOINTS, *(f"{turn}.{number}" for number in range(MAX_SUBSCRIBED))))
    assert stream.name_count == MAX_SUBSCRIBED


@given(st.lists(st.binary(max_size=60) | st.sampled_from([request(k, "lobby") for k in RESOURCE_KINDS]), max_size=20))
def test_no_bytes_raise_anything_else(messages: list[bytes]) -> None:
    stream = StateOfTheWorld()
    for data in messages:
        try:
            stream.receive(data)
        except XdsRefused:
            return
        stream.respond(BOTH)
