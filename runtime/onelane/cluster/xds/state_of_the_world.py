"""A stream of xDS in the variant "state of the world": requests have all names that are wanted of a type. Pure.

A response has all resources of clusters and listeners that are wanted, since one that is left out does not exist; of
endpoints and routes it has those that have changed. Source: Envoy's xDS protocol, gRFC A27.
"""

from google.protobuf.message import DecodeError

from onelane.cluster.xds.resources import RESOURCE_KINDS, URL, XdsResources
from onelane.cluster.xds.subscription import (
    WILDCARD,
    WITH_WILDCARD,
    Nack,
    ResourceSubscription,
    XdsRefused,
    ready_kinds,
)
from onelane.v1 import xds_pb2


class StateOfTheWorld:
    """See the module. Of one stream."""

    def __init__(self) -> None:
        self.node = ""
        """What the client calls itself."""
        self.nacks: list[Nack] = []
        """Since they were taken."""
        self._subscriptions: dict[str, ResourceSubscription] = {}
        self._nonce = 0

    @property
    def name_count(self) -> int:
        """Names that the client has subscribed to."""
        return sum(len(subscription.names) for subscription in self._subscriptions.values())

    def receive(self, data: bytes) -> None:
        """Take one request. A type that is not ours is nothing that anybody waits for: it is left unanswered.

        Raises:
            XdsRefused: the stream is to end.
        """
        try:
            request = xds_pb2.DiscoveryRequest.FromString(data)
        except DecodeError:
            raise XdsRefused("the message is no DiscoveryRequest") from None
        self.node = self.node or request.node.id
        kind = request.type_url.removeprefix(URL)
        if not kind:
            raise XdsRefused("the request has no type_url")
        if kind not in RESOURCE_KINDS:
            return
        subscription = self._subscriptions.get(kind)
        if subscription is None:
            # Of a stream that another server has had, the nonce is unknown here.
            subscription = self._subscriptions[kind] = ResourceSubscription(kind)
            _subscribe(subscription, list(request.resource_names))
            return
        if request.response_nonce and request.response_nonce != subscription.nonce:
            # Sent before the last response had come: there will be another request, which answers that.
            return
        refusal = request.error_detail.message if request.HasField("error_detail") else None
        if nack := subscription.answered(request.response_nonce, refusal):
            self.nacks.append(nack)
        _subscribe(subscription, list(request.resource_names))

    def respond(self, resources: XdsResources) -> list[bytes]:
        """The responses that are due by the resources of now."""
        kinds = ready_kinds(self._subscriptions)
        return [response for subscription in kinds if (response := self._response(subscription, resources))]

    def _response(self, subscription: ResourceSubscription, resources: XdsResources) -> bytes:
        available = resources.by_kind[subscription.kind]
        changed, removed = subscription.news(available)
        is_whole = subscription.kind in WITH_WILDCARD
        is_due = changed or (removed and is_whole) or (subscription.is_wildcard and not subscription.is_answered)
        if not is_due:
            return b""
        if is_whole:
            names = available.keys() if subscription.is_wildcard else subscription.names & available.keys()
            changed = [available[name] for name in sorted(names)]
        self._nonce += 1
        subscription.told(changed, removed, str(self._nonce))
        return xds_pb2.DiscoveryResponse(
            version_info=resources.versions[subscription.kind],
            type_url=URL + subscription.kind,
            nonce=subscription.nonce,
            resources=[resource.packed for resource in changed],
        ).SerializeToString()


def _subscribe(subscription: ResourceSubscription, names: list[str]) -> None:
    """Raises:
    XdsRefused: see `ResourceSubscription.add`.
    """
    asks_for_all = WILDCARD in names or not (names or subscription.has_named)
    subscription.is_wildcard = asks_for_all and subscription.kind in WITH_WILDCARD
    subscription.names &= set(names)
    subscription.add(names)
    if not subscription.is_wildcard:
        for name in subscription.sent.keys() - subscription.names:
            del subscription.sent[name]
