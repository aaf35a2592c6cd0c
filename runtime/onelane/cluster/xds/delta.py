"""A stream of xDS in the incremental variant: requests and responses have what has changed. Pure.

Source: Envoy's xDS protocol, "Incremental xDS".
"""

from collections.abc import Mapping

from google.protobuf.message import DecodeError

from onelane.cluster.xds.resources import RESOURCE_KINDS, URL, XdsResource, XdsResources
from onelane.cluster.xds.subscription import (
    MAX_SUBSCRIBED,
    WILDCARD,
    WITH_WILDCARD,
    Nack,
    ResourceSubscription,
    XdsRefused,
    ready_kinds,
)
from onelane.v1 import xds_pb2
from onelane.wire.statuses import RESOURCE_EXHAUSTED


class Delta:
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
        """Names that the client has subscribed to, or said that it has."""
        return sum(len(s.names | s.sent.keys()) for s in self._subscriptions.values())

    def receive(self, data: bytes) -> None:
        """Take one request. A type that is not ours is nothing that anybody waits for: it is left unanswered.

        Raises:
            XdsRefused: the stream is to end.
        """
        try:
            request = xds_pb2.DeltaDiscoveryRequest.FromString(data)
        except DecodeError:
            raise XdsRefused("the message is no DeltaDiscoveryRequest") from None
        self.node = self.node or request.node.id
        kind = request.type_url.removeprefix(URL)
        if not kind:
            raise XdsRefused("the request has no type_url")
        if kind not in RESOURCE_KINDS:
            return
        subscription = self._subscriptions.get(kind)
        if subscription is None:
            subscription = self._subscriptions[kind] = ResourceSubscription(kind)
            _begin(subscription, list(request.resource_names_subscribe), request.initial_resource_versions)
        refusal = request.error_detail.message if request.HasField("error_detail") else None
        if nack := subscription.answered(request.response_nonce, refusal):
            self.nacks.append(nack)
        _change(subscription, list(request.resource_names_subscribe), list(request.resource_names_unsubscribe))

    def respond(self, resources: XdsResources) -> list[bytes]:
        """The responses that are due by the resources of now."""
        kinds = ready_kinds(self._subscriptions)
        return [response for subscription in kinds if (response := self._response(subscription, resources))]

    def _response(self, subscription: ResourceSubscription, resources: XdsResources) -> bytes:
        changed, removed = subscription.news(resources.by_kind[subscription.kind])
        is_due = changed or removed or (subscription.is_wildcard and not subscription.is_answered)
        if not is_due:
            return b""
        self._nonce += 1
        subscription.told(changed, removed, str(self._nonce))
        return xds_pb2.DeltaDiscoveryResponse(
            system_version_info=resources.versions[subscription.kind],
            type_url=URL + subscription.kind,
            nonce=subscription.nonce,
            resources=[_message(resource) for resource in changed],
            removed_resources=removed,
        ).SerializeToString()


def _begin(subscription: ResourceSubscription, names: list[str], versions: Mapping[str, str]) -> None:
    """The first request of a type. versions: of the resources that the client has.

    Raises:
        XdsRefused: there are too many.
    """
    if len(versions) > MAX_SUBSCRIBED:
        text = f"{len(versions)} resources of {subscription.kind} on one stream, at most {MAX_SUBSCRIBED}"
        raise XdsRefused(text, code=RESOURCE_EXHAUSTED)
    subscription.is_wildcard = not names and subscription.kind in WITH_WILDCARD
    subscription.sent = dict(versions)


def _change(subscription: ResourceSubscription, subscribed: list[str], unsubscribed: list[str]) -> None:
    """Raises:
    XdsRefused: see `ResourceSubscription.add`.
    """
    subscription.add(subscribed)
    if WILDCARD in subscribed and subscription.kind in WITH_WILDCARD:
        subscription.is_wildcard = True
    if subscription.is_answered:
        # Subscribed to once more: the client has let go of what it was sent.
        for name in subscribed:
            subscription.sent.pop(name, None)
    if WILDCARD in unsubscribed:
        subscription.is_wildcard = False
    for name in unsubscribed:
        subscription.names.discard(name)
        # Still wanted by the wildcard: it is sent again, so that the client knows.
        subscription.sent.pop(name, None)
    if not subscription.is_wildcard:
        for name in subscription.sent.keys() - subscription.names:
            del subscription.sent[name]


def _message(resource: XdsResource) -> xds_pb2.Resource:
    return xds_pb2.Resource(name=resource.name, version=resource.version, resource=resource.packed)
