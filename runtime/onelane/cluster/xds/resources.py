"""The placements of apps as xDS resources. Pure.

An app is a listener, a route, a cluster and its endpoints, all of its name: a client dials `xds:///APP`. The route
hashes the header `onelane-key`; the cluster's policy is ring_hash, with as many points for each endpoint as `core/ring`
has. So a client computes our owner of each key. A key that is pinned has a route of its own, which hashes, in place of
the key, a point of the shard that owns it.

Promises: the same placement is the same bytes and versions on every machine.
Leaves out: TLS between clients and shards, for which clients have credentials of their own.
Source: gRFCs A27, A28, A42, A74; Envoy's API v3.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import xxhash
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from onelane.cluster.xds.routed_app import RoutedApp
from onelane.core import addresses
from onelane.core.placement import Placement
from onelane.core.ring import first_point_of
from onelane.v1 import xds_pb2

CLUSTER = "envoy.config.cluster.v3.Cluster"
ENDPOINTS = "envoy.config.endpoint.v3.ClusterLoadAssignment"
LISTENER = "envoy.config.listener.v3.Listener"
ROUTE = "envoy.config.route.v3.RouteConfiguration"
RESOURCE_KINDS = (CLUSTER, ENDPOINTS, LISTENER, ROUTE)
"""In this order they are sent: what is referred to comes before what refers to it."""
MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = "envoy.extensions.filters.http.router.v3.Router"
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
URL = "type.googleapis.com/"
"""Before the name of a type, in its type URL."""

KEY_HEADER = "onelane-key"
MAX_PINNED_KEYS = 256
"""Pinned keys that have routes: clients look at them one after the other for each call. Calls of further ones go by the
ring, and are forwarded."""
WHOLE_VALUE = "^.*$"
"""Anchored: without, some clients replace the empty match at the end once more."""
CONNECT_S = 5
NO_LIMIT = 2**32 - 1
"""Of what one client does at once; by default it is 1024 calls, and further ones fail. Shards refuse by themselves."""
V3, EDS, RING_HASH = 2, 3, 2
HEALTHY, DRAINING_ENDPOINT = 1, 3
REGION = "onelane"
"""Of the one locality: a client drops endpoints without one."""


@dataclass(frozen=True, slots=True)
class XdsResource:
    """One resource, as it is sent."""

    name: str
    version: str
    """Changes with the bytes; and that of endpoints with those of their cluster: Envoy waits for the endpoints of a
    cluster that has changed to be sent once more."""
    packed: AnyMessage


@dataclass(frozen=True)
class XdsResources:
    """All resources of a cluster, as of one view of it."""

    by_kind: Mapping[str, Mapping[str, XdsResource]]
    """Type → name → resource."""

    @cached_property
    def versions(self) -> dict[str, str]:
        """Type → the version of all its resources together."""
        by_name = {kind: [rows[name] for name in sorted(rows)] for kind, rows in self.by_kind.items()}
        return {kind: _digest((r.name + r.version).encode() for r in rows) for kind, rows in by_name.items()}


def resources_of(apps: Mapping[str, RoutedApp]) -> XdsResources:
    """The resources of apps, by their names."""
    by_kind: dict[str, dict[str, XdsResource]] = {kind: {} for kind in RESOURCE_KINDS}
    for name in sorted(apps):
        app = apps[name]
        cluster = _resource(CLUSTER, name, _cluster(name, app.owners.ring_size))
        by_kind[CLUSTER][name] = cluster
        by_kind[ENDPOINTS][name] = _resource(ENDPOINTS, name, _endpoints(name, app), of=cluster.version)
        by_kind[LISTENER][name] = _resource(LISTENER, name, _listener(name))
        by_kind[ROUTE][name] = _resource(ROUTE, name, _routes(name, app.owners))
    return XdsResources(by_kind)


def _ads() -> xds_pb2.ConfigSource:
    return xds_pb2.ConfigSource(ads=xds_pb2.AggregatedConfigSource(), resource_api_version=V3)


def _listener(name: str) -> xds_pb2.Listener:
    router = xds_pb2.HttpFilter(name="router", typed_config=_packed(ROUTER, xds_pb2.Router()))
    rds = xds_pb2.Rds(config_source=_ads(), route_config_name=name)
    manager = xds_pb2.HttpConnectionManager(stat_prefix=name, rds=rds, http_filters=[router])
    return xds_pb2.Listener(name=name, api_listener=xds_pb2.ApiListener(api_listener=_packed(MANAGER, manager)))


def _routes(name: str, owners: Placement) -> xds_pb2.RouteConfiguration:
    addresses_by_name = {member.name: member.address for member in owners.members}
    pinned = [(key, owners.pins[key]) for key in sorted(owners.pins)[:MAX_PINNED_KEYS]]
    routes = [_pinned_route(name, key, addresses_by_name[shard]) for key, shard in pinned if shard in addresses_by_name]
    host = xds_pb2.VirtualHost(name=name, domains=["*"], routes=[*routes, _route(name)])
    return xds_pb2.RouteConfiguration(name=name, virtual_hosts=[host])


def _pinned_route(cluster: str, key: str, address: str) -> xds_pb2.Route:
    """Not to a cluster of that shard alone: grpc-go 1.85 uses a route before it knows its cluster, and fails calls."""
    route = _route(cluster)
    route.match.headers.add(name=KEY_HEADER, string_match=xds_pb2.StringMatcher(exact=key))
    rewrite = route.route.hash_policy[0].header.regex_rewrite
    rewrite.pattern.regex = WHOLE_VALUE
    rewrite.substitution = first_point_of(address)
    return route


def _route(cluster: str) -> xds_pb2.Route:
    header = xds_pb2.RouteAction.HashPolicy.Header(header_name=KEY_HEADER)
    action = xds_pb2.RouteAction(cluster=cluster, hash_policy=[xds_pb2.RouteAction.HashPolicy(header=header)])
    # Envoy's own is 15 s, whatever the deadline of a call; 0 is none.
    action.timeout.SetInParent()
    return xds_pb2.Route(match=xds_pb2.RouteMatch(prefix=""), route=action)


def _cluster(name: str, ring_size: int) -> xds_pb2.Cluster:
    cluster = xds_pb2.Cluster(name=name, type=EDS, lb_policy=RING_HASH)
    cluster.eds_cluster_config.CopyFrom(xds_pb2.Cluster.EdsClusterConfig(eds_config=_ads(), service_name=name))
    cluster.connect_timeout.seconds = CONNECT_S
    cluster.ring_hash_lb_config.minimum_ring_size.value = ring_size
    cluster.ring_hash_lb_config.maximum_ring_size.value = ring_size
    # Envoy sends calls to endpoints that drain where half of them do, unless it is told not to.
    cluster.common_lb_config.healthy_panic_threshold.SetInParent()
    limits = cluster.circuit_breakers.thresholds.add()
    for limit in (limits.max_connections, limits.max_pending_requests, limits.max_requests):
        limit.value = NO_LIMIT
    http2 = xds_pb2.HttpProtocolOptions()
    http2.explicit_http_config.http2_protocol_options.SetInParent()
    cluster.typed_extension_protocol_options[HTTP_OPTIONS].CopyFrom(_packed(HTTP_OPTIONS, http2))
    return cluster


def _endpoints(name: str, app: RoutedApp) -> xds_pb2.ClusterLoadAssignment:
    message = xds_pb2.ClusterLoadAssignment(cluster_name=name)
    locality = message.endpoints.add(locality=xds_pb2.Locality(region=REGION))
    locality.load_balancing_weight.value = 1
    for member in app.members:
        is_draining = member.name in app.draining
        endpoint = locality.lb_endpoints.add(health_status=DRAINING_ENDPOINT if is_draining else HEALTHY)
        host, port = addresses.split(member.address)
        endpoint.endpoint.address.socket_address.address = host
        endpoint.endpoint.address.socket_address.port_value = port
        endpoint.load_balancing_weight.value = 1
        # What clients hash that do not hash the address as it is written here.
        endpoint.metadata.filter_metadata["envoy.lb"]["hash_key"] = member.address
    return message


def _resource(kind: str, name: str, message: Message, *, of: str = "") -> XdsResource:
    """of: the version of what it belongs to."""
    packed = _packed(kind, message)
    return XdsResource(name, _digest([packed.value, of.encode()]), packed)


def _packed(kind: str, message: Message) -> AnyMessage:
    # Deterministic: a map has no order of its own.
    return AnyMessage(type_url=URL + kind, value=message.SerializeToString(deterministic=True))


def _digest(parts: Iterable[bytes]) -> str:
    digest = xxhash.xxh64()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
