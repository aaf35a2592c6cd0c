"""Which key a call has and which shard owns it, by the newest placement that this shard knows.

Decides without I/O; sending a call to its owner is `forwarding`'s.
"""

from collections.abc import Callable, Mapping
from typing import Any

from onelane.core import keys
from onelane.core.handoff import HOLD, Handoff
from onelane.core.keys import ANY, FieldKey, RoutingKey
from onelane.core.placement import Member, Placement
from onelane.core.trace_context import MAX_BAGGAGE, TraceContext, trace_of_metadata
from onelane.core.turns import CHAIN, holders
from onelane.errors import ForeignKey, KeyMoves, NotHome, OnelaneError, OwnerAway
from onelane.lane.method_entry import Entry
from onelane.lane.unary_forward import NOT_HOME
from onelane.server.call import AWAY, DIRECT_HOP, Call, Metadata
from onelane.server.methods import Method
from onelane.server.payloads import parse

UNRESPONSIVE, DRAINED = "unresponsive", "drained"
"""Why a shard serves no calls; values of `onelane.reason` of the metric `onelane.refusals`."""
MAX_HOMES = 16_384
"""Keys whose owner is remembered; with more, all are looked up anew."""
ARRIVING = Member("", "", "")
"""Stands for the owner of a key that arrives in a change of placement: this shard, once its state is here."""
_NO_METADATA: dict[str, Any] = {}


class Router:
    """See the module. Owned by one lane."""

    def __init__(
        self,
        shard: str,
        placement: Placement,
        *,
        life: int = 0,
        max_key_bytes: int = keys.MAX_KEY_BYTES,
        follow: Callable[[TraceContext], TraceContext] = lambda trace: trace,
    ) -> None:
        """life: of this process, see `Member`. max_key_bytes: of a key that the code of a service names; those of calls
        have it in their rule. follow: the trace of a client's call whose sampled flag is set, with the flag as far as
        this shard follows it."""
        self.shard = shard
        self.life = life
        self.placement = placement
        self.handoff: Handoff | None = None
        """This shard's part in the change of placement that leads to `placement`; None between changes."""
        self.on_leaving: Callable[[str], object] | None = None
        """Called with each key that leaves in the change of placement, as the first call of it is sent on."""
        self._max_key_bytes = max_key_bytes
        self._follow = follow
        self.away: Mapping[str, str] = {}
        """Name of a shard that serves no calls now → why: see `OwnerAway`. It keeps its keys: the state is there, and a
        process that is stopped may go on at any time."""
        self.homes: dict[str, Member | None] = {}
        """Key → its owner by this placement, None for this shard. The lane reads it for nearly every call."""

    def place(self, placement: Placement) -> bool:
        """Follow a newer placement; an older one is ignored. Whether it was newer: of the same epoch is one which names
        other lives of its shards."""
        is_known = self.handoff is None and placement.members == self.placement.members
        if placement.epoch < self.placement.epoch or (placement.epoch == self.placement.epoch and is_known):
            return False
        self.placement, self.handoff = placement, None
        self.homes.clear()
        return True

    def change(self, handoff: Handoff) -> None:
        """A change of placement begins: a call is sent on by the placement that follows, and waits for a key that
        arrives. It is over with `place`."""
        self.placement, self.handoff, self.on_leaving = handoff.after, handoff, None
        self.homes.clear()

    def epoch_of(self, key: str) -> int:
        """The epoch of the placement by which this very process owns `key`, also until it has handed the key over; 0
        where another one does."""
        if self.is_own(self.placement.owner_of(key)):
            return self.placement.epoch
        if self.handoff is not None and self.is_own(self.handoff.before.owner_of(key)):
            return self.handoff.before.epoch
        return 0

    def siblings(self) -> list[Member]:
        """The other shards; in a change of placement those of before, too, whose streams go on for a while."""
        members = (
            self.placement.members if self.handoff is None else (*self.placement.members, *self.handoff.before.members)
        )
        return [member for member in dict.fromkeys(members) if not self.is_own(member)]

    def is_own(self, member: Member) -> bool:
        """Whether it is this very process."""
        return member.name == self.shard and member.life == self.life

    def avoid(self, away: Mapping[str, str]) -> list[Member]:
        """Send nothing to these shards, in place of those before; returns those that are unresponsive only now."""
        lost = {name for name, why in away.items() if why == UNRESPONSIVE and self.away.get(name) != UNRESPONSIVE}
        self.away = away
        return [member for member in self.placement.members if member.name in lost]

    def check_serves(self, owner: Member) -> None:
        """Refuse to forward a call where its owner serves none.

        Raises:
            OwnerAway: so it is.
        """
        if owner.name in self.away:
            raise OwnerAway(owner.name, self.away[owner.name])

    def own_key(self, key: RoutingKey, source: str) -> str:
        """The canonical text of a key that the code of a service names; this shard must own it, or end calls of it that
        have begun before it leaves. source: the argument that names it, for the error.

        Raises:
            LongKey, ForeignKey, KeyMoves: see `onelane.errors`.
        """
        text = self.named_key(key, source)
        owner = self._home(text)
        if owner is None or owner is ARRIVING:
            return text
        if self.handoff is None or not self.is_own(self.handoff.before.owner_of(text)):
            raise ForeignKey(text, shard=self.shard, owner=owner.name)
        if not self.handoff.is_busy(text):
            raise KeyMoves(text, shard=self.shard, owner=owner.name)
        return text

    def named_key(self, key: RoutingKey, source: str) -> str:
        """As `own_key`, of a key that any shard may own."""
        return keys.bounded(key, source, self._max_key_bytes)

    def find_home(self, key: str) -> Member | None:
        """The owner of `key`, None for this shard; remembered for its next call."""
        home = self._home(key)
        if home is not ARRIVING:
            if len(self.homes) >= MAX_HOMES:
                self.homes.clear()
            self.homes[key] = home
        return home

    def _home(self, key: str) -> Member | None:
        if self.handoff is None:
            owner = self.placement.owner_of(key)
            return None if self.is_own(owner) else owner
        where = self.handoff.where(key, 0)
        if isinstance(where, Member):
            if self.on_leaving is not None:
                self.on_leaving(key)
            return where
        return ARRIVING if where is HOLD else None

    def home_of(self, method: Method, metadata: Metadata, message: bytes | None) -> str | None:
        """See `onelane.server.listener.Serving`."""
        rule = method.rule
        if rule is ANY:
            return ""
        try:
            if not isinstance(rule, FieldKey) or keys.header_of(metadata):
                key = keys.key_in(rule, None, metadata)
            elif message is None:
                return None
            else:
                key = rule.read(parse(method, message))
        except OnelaneError:
            return ""
        if self.handoff is not None:
            # Its owner may be about to hand it over.
            return ""
        owner = self.placement.owner_of(key)
        return "" if self.is_own(owner) or owner.name in self.away or owner.is_remote else owner.socket

    def route(self, entry: Entry, call: Call, request: bytes | None) -> tuple[Member | None, str | None, Any]:
        """The owner of a call (None: this shard), its key (None: it has none), and its request, parsed where it runs
        here. The long way: of calls with metadata, of streams, and of methods without a key.

        request: None where the client streams; the first message has been pushed back then, if the key is in it.

        Raises:
            BadKey, Malformed: see `onelane.errors`.
        """
        method = entry.method
        message = None
        if entry.any:
            if call.metadata:
                self._read_metadata(call, dict(call.metadata))
            return None, None, None if request is None else parse(method, request)
        metadata = dict(call.metadata) if call.metadata else _NO_METADATA
        rule = method.rule
        header = metadata.get(keys.HEADER)
        if header or not isinstance(rule, FieldKey):
            key = keys.key_in(rule, None, call.metadata)
        elif request is not None:
            message = parse(method, request)
            key = rule.read(message)
        else:
            assert call.first is not None
            key = rule.read(parse(method, call.first))
        if metadata:
            self._read_metadata(call, metadata)
        try:
            owner = self.homes[key]
        except KeyError:
            owner = self.find_home(key)
        if owner is None and message is None and request is not None:
            message = parse(method, request)
            if isinstance(rule, FieldKey):
                keys.check_header(rule.read(message), keys.header_of(call.metadata), rule.paths[0])
        return owner, key, message

    def is_ahead(self, call: Call) -> bool:
        """Whether the sibling that has sent a call on knows a newer placement, which is on its way here."""
        return call.epoch > self.placement.epoch

    def check_hop(self, call: Call) -> None:
        """Refuse to send a call on that a sibling has sent here by the very placement that this shard has: it would go
        round. By an older placement it goes on, with the epoch of the newer one.

        Raises:
            NotHome: so it is.
        """
        if call.hop == DIRECT_HOP or call.epoch < self.placement.epoch:
            return
        epoch = self.placement.epoch
        # The sender counts it, with the status that the call has in the end.
        call.hop = AWAY
        call.trailers = ((NOT_HOME, str(epoch)), ("onelane-epoch", str(epoch)))
        raise NotHome(epoch=epoch)

    def holder_of(self, key: str, call: Call) -> Member | None:
        """The old owner of a key that arrives, where the chain of a call holds a turn on that shard: if it is the turn
        of this very key, the key arrives only once the call has ended, so it is to be sent there. None where it has
        been."""
        if self.handoff is None or not call.chain or call.epoch >= self.placement.epoch:
            return None
        owner = self.handoff.before.owner_of(key)
        return owner if any(holder.startswith(f"{owner.name}/") for holder in holders(call.chain)) else None

    def _read_metadata(self, call: Call, metadata: Any) -> None:
        """Take the metadata that are meant for the runtime."""
        # A forwarded call has the trace of its hop already.
        if call.parent is None and "traceparent" in metadata:
            trace = trace_of_metadata(metadata["traceparent"], metadata.get("tracestate"))
            # A sibling has decided already; and a call that is not recorded, whose span is set, takes no share.
            if trace is not None and trace.sampled and not call.trusted and call.span is None:
                trace = self._follow(trace)
            call.parent = trace
        if "baggage" in metadata and len(baggage := str(metadata["baggage"])) <= MAX_BAGGAGE:
            call.baggage = baggage
        chain = metadata.get(CHAIN)
        if isinstance(chain, str):
            # Counts from any peer: only a holder of the turn can know its number. See `core/turns`.
            call.chain = chain
        if "onelane-debug" in metadata:
            epoch = str(self.placement.epoch)
            call.debug = (("onelane-shard", self.shard), ("onelane-epoch", epoch), ("onelane-hop", call.hop))
