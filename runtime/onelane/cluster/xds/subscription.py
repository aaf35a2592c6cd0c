"""What one stream of xDS has subscribed to of one type, and what of it has been sent. Pure.

    IDLE ──something is new──▶ sent, AWAITED ──ACK or NACK──▶ IDLE

Promises: at most one response of a type awaits its ACK or NACK; what changes meanwhile is sent then, as it is then. So
a client that never answers is sent one response of each type, and a client that refuses one gets no other until
something has changed.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from onelane.cluster.xds.resources import CLUSTER, ENDPOINTS, LISTENER, RESOURCE_KINDS, XdsResource
from onelane.errors import OnelaneError
from onelane.wire.statuses import INVALID_ARGUMENT, RESOURCE_EXHAUSTED

WILDCARD = "*"
WITH_WILDCARD = {CLUSTER, LISTENER}
"""Types of which a first request without names asks for all."""
MAX_SUBSCRIBED = 1000
"""Of one type on one stream."""
MAX_NAME = 256
"""Characters of a name."""
ABSENT = ""
"""The version of a resource that the client was told does not exist."""


class XdsRefused(OnelaneError):
    """The stream ends with this status."""

    def __init__(self, text: str, *, code: int = INVALID_ARGUMENT) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Nack:
    """A client has refused a response."""

    kind: str
    nonce: str
    reason: str


@dataclass(slots=True)
class ResourceSubscription:
    """See the module. Of one type on one stream."""

    kind: str
    names: set[str] = field(default_factory=set)
    has_named: bool = False
    """The client has asked for something by its name; from then on, no name is not all of them."""
    is_wildcard: bool = False
    sent: dict[str, str] = field(default_factory=dict)
    """Name → the version that was sent last, or `ABSENT`."""
    nonce: str = ""
    """Of the last response."""
    is_awaited: bool = False
    """The last response has had no answer."""
    is_answered: bool = False
    """There has been a response."""

    def answered(self, nonce: str, refusal: str | None) -> Nack | None:
        """The client has answered a response. refusal: why it is refused; None for an ACK."""
        if not nonce or nonce != self.nonce or not self.is_awaited:
            return None
        self.is_awaited = False
        return None if refusal is None else Nack(self.kind, nonce, refusal)

    def add(self, names: Collection[str]) -> None:
        """Raises:
        XdsRefused: too many names, or too long ones.
        """
        wanted = {name for name in names if name != WILDCARD}
        if any(len(name) > MAX_NAME for name in wanted):
            raise XdsRefused(f"a name of {self.kind} has more than {MAX_NAME} characters")
        if len(wanted | self.names) > MAX_SUBSCRIBED:
            text = f"{len(wanted | self.names)} names of {self.kind} on one stream, at most {MAX_SUBSCRIBED}"
            raise XdsRefused(text, code=RESOURCE_EXHAUSTED)
        self.names |= wanted
        self.has_named = self.has_named or bool(names)

    def news(self, available: Mapping[str, XdsResource]) -> tuple[list[XdsResource], list[str]]:
        """What is to be sent by these resources: those that are new to the client, and the names of those that it is to
        be told do not exist."""
        wanted = self.names | available.keys() | self.sent.keys() if self.is_wildcard else self.names
        changed = [
            available[name]
            for name in sorted(wanted & available.keys())
            if self.sent.get(name) != available[name].version
        ]
        removed = [name for name in sorted(wanted - available.keys()) if self.sent.get(name) != ABSENT]
        return changed, removed

    def told(self, changed: Collection[XdsResource], removed: Collection[str], nonce: str) -> None:
        """They have been sent by the response of this nonce."""
        self.sent |= {resource.name: resource.version for resource in changed}
        for name in removed:
            # What nobody asked for by its name is forgotten once its client knows of its end.
            if name in self.names:
                self.sent[name] = ABSENT
            else:
                self.sent.pop(name, None)
        self.nonce = nonce
        self.is_awaited = self.is_answered = True


def ready_kinds(subscriptions: Mapping[str, ResourceSubscription]) -> Iterator[ResourceSubscription]:
    """The types of a stream that a response may be sent of, in their order. To be asked after each response.

    Whoever has all clusters, as Envoy does, calls those that a route names at once: so routes wait until it has taken
    the clusters and their endpoints. A client of gRPC asks for the clusters that its route names, and waits itself.
    """
    for kind in RESOURCE_KINDS:
        if kind not in (CLUSTER, ENDPOINTS) and _awaits_clusters(subscriptions):
            return
        subscription = subscriptions.get(kind)
        if subscription is not None and not subscription.is_awaited:
            yield subscription


def _awaits_clusters(subscriptions: Mapping[str, ResourceSubscription]) -> bool:
    clusters, endpoints = subscriptions.get(CLUSTER), subscriptions.get(ENDPOINTS)
    if clusters is None or not clusters.is_wildcard:
        return False
    if clusters.is_awaited or not clusters.is_answered:
        return True
    names = {name for name, version in clusters.sent.items() if version != ABSENT}
    return bool(names) and (endpoints is None or endpoints.is_awaited or not names <= endpoints.names)
