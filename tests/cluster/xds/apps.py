"""Apps for the tests of xDS, and what a response says."""

from onelane.cluster.xds.resources import URL, XdsResources, resources_of
from onelane.cluster.xds.routed_app import RoutedApp
from onelane.core.placement import Member, Placement
from onelane.v1 import xds_pb2


def placement(*ports: int, epoch: int = 1, points: int = 16, pins: dict[str, str] | None = None) -> Placement:
    """Of shards `lobby-PORT` at these ports."""
    members = tuple(Member(f"lobby-{port}", f"127.0.0.1:{port}", "", life=port) for port in ports)
    return Placement(epoch, members, points, pins or {})


def resources(**apps: Placement | RoutedApp) -> XdsResources:
    return resources_of({name: app if isinstance(app, RoutedApp) else RoutedApp(app) for name, app in apps.items()})


def endpoints_in(value: bytes) -> dict[str, int]:
    """Address → health status, in their order."""
    message = xds_pb2.ClusterLoadAssignment.FromString(value)
    [locality] = message.endpoints
    rows = [(row.endpoint.address.socket_address, row.health_status) for row in locality.lb_endpoints]
    return {f"{address.address}:{address.port_value}": status for address, status in rows}


def url(kind: str) -> str:
    return URL + kind
