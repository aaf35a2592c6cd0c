"""The service `onelane.v1.Topology` of every shard: the placement, for clients that route, and the status of all.

The placement is public: clients cannot route without it. The status names processes, lines of code and traces of all
apps, so it is for proven peers: siblings, clients whose certificate mutual TLS has checked, and where the app is
configured so, anyone.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any

import grpc

from onelane.cluster.membership import Membership
from onelane.core.placement import Placement
from onelane.v1 import topology_pb2, topology_pb2_grpc

STATUS_IS_CLOSED = (
    "the status is for siblings and for clients with a certificate (tls.client_ca): ask the admin address, "
    "or set open_status = true"
)


class Topology(topology_pb2_grpc.TopologyServicer):
    """Streams the placement that its shard follows; passes requests for the status of all shards to the supervisor."""

    def __init__(
        self,
        membership: Membership,
        *,
        app: str,
        listen: str,
        keys: Mapping[str, str],
        once_methods: Callable[[], Iterable[str]],
        status: Callable[[], Awaitable[str]],
        is_status_open: bool,
        refused: Callable[[Any, str], None],
    ) -> None:
        """once_methods: see the proto; asked when the first client comes, and so once there are services. status: asks
        the supervisor. refused: counts a call that is refused, and logs it."""
        self._membership = membership
        self._fixed = topology_pb2.Placement(app=app, listen=listen, keys=dict(keys))
        self._once_methods = once_methods
        self._placement: Placement | None = None
        self._message: topology_pb2.Placement | None = None
        """The message of `_placement`."""
        self._status = status
        self._is_status_open = is_status_open
        self._refused = refused

    async def Watch(self, request: topology_pb2.WatchRequest, context: Any) -> AsyncIterator[topology_pb2.Placement]:
        async for placement in self._membership.watch():
            yield self._message_of(placement)

    def _message_of(self, placement: Placement) -> topology_pb2.Placement:
        """Made once for each placement: thousands of watches get it in one turn of the loop."""
        if self._message is None:
            self._fixed.once_methods.extend(self._once_methods())
        if self._message is None or self._placement is not placement:
            self._placement, self._message = placement, to_proto(placement, self._fixed)
        return self._message

    async def Status(self, request: topology_pb2.StatusRequest, context: Any) -> topology_pb2.StatusReply:
        if not (self._is_status_open or context.trusted or context.peer_identities()):
            self._refused(context, "stranger")
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, STATUS_IS_CLOSED)
        return topology_pb2.StatusReply(json=await self._status())


def to_proto(placement: Placement, fixed: topology_pb2.Placement) -> topology_pb2.Placement:
    """`placement` as a message. fixed: the fields of its app that never change."""
    message = topology_pb2.Placement(
        epoch=placement.epoch,
        members=[topology_pb2.Member(name=m.name, address=m.address) for m in placement.members],
        points=placement.points,
        pins=dict(placement.pins),
        service_config=placement.service_config_json(),
    )
    message.MergeFrom(fixed)
    return message
