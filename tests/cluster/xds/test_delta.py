"""A stream of xDS, incremental: bytes in, bytes out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.cluster.xds.delta import Delta
from onelane.cluster.xds.resources import CLUSTER, ENDPOINTS, LISTENER, RESOURCE_KINDS, XdsResources
from onelane.cluster.xds.subscription import MAX_SUBSCRIBED, XdsRefused
from onelane.v1 import xds_pb2
from onelane.wire.statuses import INVALID_ARGUMENT, RESOURCE_EXHAUSTED

from tests.cluster.xds.apps import placement, resources, url

NONE = resources()
ONE = resources(lobby=placement(1))
BOTH = resources(lobby=placement(1, 2), shop=placement(7))


def request(
    kind: str,
    *subscribe: str,
    unsubscribe: list[str] | None = None,
    nonce: str = "",
    nack: str | None = None,
    has: dict[str, str] | None = None,
) -> bytes:
    message = xds_pb2.DeltaDiscoveryRequest(
        type_url=url(kind),
        resource_names_subscribe=subscribe,
        resource_names_unsubscribe=unsubscribe or [],
        initial_resource_versions=has or {},
        response_nonce=nonce,
    )
    if nack is not None:
        message.error_detail.message = nack
    return message.SerializeToString()


def responses(stream: Delta, now: XdsResources = ONE) -> list[tuple[str, list[str], list[str], str]]:
    """Type, names, removed names and nonce of each response that is due."""
    rows = [xds_pb2.DeltaDiscoveryResponse.FromString(data) for data in stream.respond(now)]
    return [
        (row.type_url.rpartition("/")[2], [r.name for r in row.resources], list(row.removed_resources), row.nonce)
        for row in rows
    ]


def test_only_what_has_changed_is_sent() -> None:
    stream = Delta()
    stream.receive(request(CLUSTER, "lobby", "shop"))
    assert responses(stream, BOTH) == [(CLUSTER, ["lobby", "shop"], [], "1")]
    stream.receive(request(CLUSTER, nonce="1"))
    assert responses(stream, BOTH) == []
    grown = resources(lobby=placement(1, 2, 3), shop=placement(7))
    assert responses(stream, grown) == [(CLUSTER, ["lobby"], [], "2")]


def test_what_a_client_has_from_another_server_is_not_sent_again() -> None:
    stream = Delta()
    version = BOTH.by_kind[ENDPOINTS]["shop"].version
    stream.receive(request(ENDPOINTS, "lobby", "shop", has={"shop": version, "lobby": "old"}))
    assert responses(stream, BOTH) == [(ENDPOINTS, ["lobby"], [], "1")]


@pytest.mark.parametrize("names", [[], ["*"]])
def test_no_names_or_a_star_ask_for_all_and_the_end_of_each_is_told_once(names: list[str]) -> None:
    stream = Delta()
    stream.receive(request(CLUSTER, *names))
    assert responses(stream, NONE) == [(CLUSTER, [], [], "1")]
    stream.receive(request(CLUSTER, nonce="1"))
    assert responses(stream, BOTH) == [(CLUSTER, ["lobby", "shop"], [], "2")]
    stream.receive(request(CLUSTER, nonce="2"))
    assert responses(stream, resources(shop=placement(7))) == [(CLUSTER, [], ["lobby"], "3")]
    stream.receive(request(CLUSTER, nonce="3"))
    assert responses(stream, resources(shop=placement(7))) == []
    assert stream.name_count == 1


def test_what_does_not_exist_is_told_at_once_and_sent_once_it_does() -> None:
    stream = Delta()
    stream.receive(request(LISTENER, "shop"))
    assert responses(stream) == [(LISTENER, [], ["shop"], "1")]
    stream.receive(request(LISTENER, nonce="1"))
    assert responses(stream) == []
    assert responses(stream, BOTH) == [(LISTENER, ["shop"], [], "2")]


def test_what_is_subscribed_to_again_is_sent_again() -> None:
    stream = Delta()
    stream.receive(request(ENDPOINTS, "lobby"))
    responses(stream)
    stream.receive(request(ENDPOINTS, "lobby", nonce="1"))
    assert responses(stream) == [(ENDPOINTS, ["lobby"], [], "2")]


def test_what_is_unsubscribed_from_is_sent_no_more() -> None:
    stream = Delta()
    stream.receive(request(ENDPOINTS, "lobby", "shop"))
    responses(stream, BOTH)
    stream.receive(request(ENDPOINTS, unsubscribe=["shop", "nothing"], nonce="1"))
    assert responses(stream, resources(lobby=placement(1, 2), shop=placement(8))) == []
    assert stream.name_count == 1


def test_what_a_star_still_covers_is_sent_again_where_its_name_is_given_up() -> None:
    stream = Delta()
    stream.receive(request(CLUSTER, "*", "lobby"))
    responses(stream, BOTH)
    stream.receive(request(CLUSTER, unsubscribe=["lobby"], nonce="1"))
    assert responses(stream, BOTH) == [(CLUSTER, ["lobby"], [], "2")]
    stream.receive(request(CLUSTER, unsubscribe=["*"], nonce="2"))
    assert responses(stream, NONE) == []
    assert stream.name_count == 0


def test_a_client_that_never_acknowledges_is_sent_one_response_of_each_type() -> None:
    stream = Delta()
    sent = 0
    for count in range(1, 50):
        for kind in RESOURCE_KINDS:
            stream.receive(request(kind, "lobby", nonce="wrong"))
        sent += len(responses(stream, resources(lobby=placement(*range(1, count + 1)))))
    assert sent == len(RESOURCE_KINDS)


def test_a_refused_response_is_told_once_and_not_sent_again() -> None:
    stream = Delta()
    stream.receive(request(CLUSTER, "lobby"))
    responses(stream)
    for _ in range(100):
        stream.receive(request(CLUSTER, nonce="1", nack="ring too large"))
        assert responses(stream) == []
    assert [(nack.kind, nack.nonce, nack.reason) for nack in stream.nacks] == [(CLUSTER, "1", "ring too large")]


@pytest.mark.parametrize(
    ("data", "code", "text"),
    [
        (b"\xff", INVALID_ARGUMENT, "no DeltaDiscoveryRequest"),
        (b"", INVALID_ARGUMENT, "no type_url"),
        (request(ENDPOINTS, *map(str, range(100_000))), RESOURCE_EXHAUSTED, "100000 names"),
        (request(ENDPOINTS, has={str(n): "1" for n in range(100_000)}), RESOURCE_EXHAUSTED, "100000 resources"),
    ],
)
def test_what_cannot_be_served_ends_the_stream_with_the_reason(data: bytes, code: int, text: str) -> None:
    with pytest.raises(XdsRefused, match=text) as refused:
        Delta().receive(data)
    assert refused.value.code == code


def test_names_may_come_and_go_for_ever_and_no_more_than_the_bound_stays() -> None:
    stream = Delta()
    for number in range(3 * MAX_SUBSCRIBED):
        stream.receive(request(ENDPOINTS, str(number), unsubscribe=[str(number - 5)]))
        responses(stream)
    assert stream.name_count == 5


@given(st.lists(st.binary(max_size=60) | st.sampled_from([request(k, "lobby") for k in RESOURCE_KINDS]), max_size=20))
def test_no_bytes_raise_anything_else(messages: list[bytes]) -> None:
    stream = Delta()
    for data in messages:
        try:
            stream.receive(data)
        except XdsRefused:
            return
        stream.respond(BOTH)
