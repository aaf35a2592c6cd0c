"""The placement of an app as xDS resources."""

import re

from onelane.cluster.xds.resources import (
    CLUSTER,
    DRAINING_ENDPOINT,
    ENDPOINTS,
    HEALTHY,
    HTTP_OPTIONS,
    LISTENER,
    MANAGER,
    MAX_PINNED_KEYS,
    RESOURCE_KINDS,
    ROUTE,
    ROUTER,
)
from onelane.cluster.xds.routed_app import RoutedApp
from onelane.v1 import xds_pb2

from tests.cluster.xds.apps import endpoints_in, placement, resources, url


def test_a_listener_names_the_route_by_the_same_stream() -> None:
    resource = resources(lobby=placement(1)).by_kind[LISTENER]["lobby"]
    listener = xds_pb2.Listener.FromString(resource.packed.value)
    packed = listener.api_listener.api_listener
    manager = xds_pb2.HttpConnectionManager.FromString(packed.value)
    assert (resource.packed.type_url, packed.type_url, listener.name) == (url(LISTENER), url(MANAGER), "lobby")
    assert manager.rds.route_config_name == "lobby"
    assert manager.rds.config_source.HasField("ads")
    assert [http_filter.typed_config.type_url for http_filter in manager.http_filters] == [url(ROUTER)]


def test_a_route_hashes_the_header_of_the_key_and_has_no_timeout_of_its_own() -> None:
    packed = resources(lobby=placement(1)).by_kind[ROUTE]["lobby"].packed
    [host] = xds_pb2.RouteConfiguration.FromString(packed.value).virtual_hosts
    [route] = host.routes
    assert list(host.domains) == ["*"]
    assert route.match.WhichOneof("path_specifier") == "prefix"
    assert [policy.header.header_name for policy in route.route.hash_policy] == ["onelane-key"]
    assert route.route.cluster == "lobby"
    assert route.route.HasField("timeout")
    assert route.route.timeout.ToTimedelta().total_seconds() == 0


def test_the_ring_of_a_cluster_has_the_points_of_ours() -> None:
    packed = resources(lobby=placement(1, 2, 3)).by_kind[CLUSTER]["lobby"].packed
    cluster = xds_pb2.Cluster.FromString(packed.value)
    config = cluster.ring_hash_lb_config
    assert (config.minimum_ring_size.value, config.maximum_ring_size.value) == (48, 48)
    assert cluster.eds_cluster_config.service_name == "lobby"
    assert HTTP_OPTIONS in cluster.typed_extension_protocol_options


def test_endpoints_are_in_the_order_of_the_ring() -> None:
    """By the text of their addresses: of some numbers of shards, the order decides who has a point more."""
    packed = resources(lobby=placement(900, 1000)).by_kind[ENDPOINTS]["lobby"].packed
    assert endpoints_in(packed.value) == {"127.0.0.1:1000": HEALTHY, "127.0.0.1:900": HEALTHY}
    assert list(endpoints_in(packed.value)) == ["127.0.0.1:1000", "127.0.0.1:900"]


def test_a_shard_that_drains_has_no_points() -> None:
    by_kind = resources(lobby=RoutedApp(placement(1, 2, 3), frozenset({"lobby-3"}))).by_kind
    assert endpoints_in(by_kind[ENDPOINTS]["lobby"].packed.value)["127.0.0.1:3"] == DRAINING_ENDPOINT
    cluster = xds_pb2.Cluster.FromString(by_kind[CLUSTER]["lobby"].packed.value)
    assert cluster.ring_hash_lb_config.minimum_ring_size.value == 32


def test_a_pinned_key_has_a_route_that_hashes_a_point_of_its_shard() -> None:
    pins = {"ada": "lobby-2", "bob": "lobby-1", "cid": "lobby-4"}
    pinned = placement(1, 2, pins=pins)
    packed = resources(lobby=pinned).by_kind[ROUTE]["lobby"].packed
    [host] = xds_pb2.RouteConfiguration.FromString(packed.value).virtual_hosts
    *pinned_routes, ring_route = host.routes
    assert [[h.string_match.exact for h in r.match.headers] for r in pinned_routes] == [["ada"], ["bob"]]
    assert not ring_route.match.headers
    assert not ring_route.route.hash_policy[0].header.HasField("regex_rewrite")
    ring = placement(1, 2)
    for route in pinned_routes:
        header = route.route.hash_policy[0].header
        [matched] = route.match.headers
        hashed = re.sub(header.regex_rewrite.pattern.regex, header.regex_rewrite.substitution, "any key")
        assert (matched.name, header.header_name) == ("onelane-key", "onelane-key")
        assert ring.owner_of(hashed) == pinned.owner_of(matched.string_match.exact)


def test_a_key_that_is_pinned_changes_its_route_alone() -> None:
    """Routes name no cluster that clients would have to know first."""
    before, after = (resources(lobby=placement(1, 2, pins=pins)) for pins in ({}, {"ada": "lobby-2"}))
    assert {kind for kind in RESOURCE_KINDS if before.versions[kind] != after.versions[kind]} == {ROUTE}


def test_keys_pinned_beyond_the_bound_go_by_the_ring() -> None:
    pins = {f"k{number}": "lobby-2" for number in range(MAX_PINNED_KEYS + 5)}
    packed = resources(lobby=placement(1, 2, pins=pins)).by_kind[ROUTE]["lobby"].packed
    [host] = xds_pb2.RouteConfiguration.FromString(packed.value).virtual_hosts
    assert len(host.routes) == MAX_PINNED_KEYS + 1


def test_the_same_placement_has_the_same_versions_and_another_has_others() -> None:
    first, again = (
        resources(lobby=placement(2, 1), shop=placement(7)),
        resources(shop=placement(7), lobby=placement(1, 2)),
    )
    assert first.versions == again.versions
    other = resources(lobby=placement(1, 2, 3), shop=placement(7))
    changed = {kind for kind in RESOURCE_KINDS if other.versions[kind] != first.versions[kind]}
    assert changed == {CLUSTER, ENDPOINTS}
    assert other.by_kind[ENDPOINTS]["shop"] == first.by_kind[ENDPOINTS]["shop"]


def test_endpoints_are_sent_again_where_their_cluster_has_changed() -> None:
    """Envoy waits for them."""
    first, other = resources(lobby=placement(1)), resources(lobby=placement(1, points=8))
    assert first.by_kind[ENDPOINTS]["lobby"].packed == other.by_kind[ENDPOINTS]["lobby"].packed
    assert first.by_kind[ENDPOINTS]["lobby"].version != other.by_kind[ENDPOINTS]["lobby"].version
