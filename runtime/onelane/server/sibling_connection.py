"""A sibling's connection: the calls that it forwards are those of its clients, with their peer, identity and deadline.

Only here do the headers of `core/hop` count: a shard of this app alone can connect to the Unix socket.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import ClassVar

from onelane.core import addresses, hop
from onelane.core.hop import SERVED, Hop
from onelane.core.trace_context import TraceContext
from onelane.server.arguments import STATUS_OF_NUMBER
from onelane.server.call import FORWARDED_HOP, OK, Metadata
from onelane.server.call_state import ARRIVED
from onelane.server.connection import ConnectionOwner, NativeConnection
from onelane.server.methods import Method
from onelane.server.native_call import CallConnection, NativeCall
from onelane.wire import framing
from onelane.wire.driver import Read
from onelane.wire.framing import BadWire
from onelane.wire.http2 import SIBLING_LIMITS
from onelane.wire.link_frames import MAGIC
from onelane.wire.link_server import ForwardedStream, LinkServer
from onelane.wire.server import Stream

SIBLING_GOODBYE_S = 5.0
"""As `GOAWAY_S`: a sibling may get no CPU for a while, and what it sends meanwhile is served until it has read the
GOAWAY."""

MAX_SIBLING_MESSAGE = 2**31 - 1
"""Bytes. The state of one key is one message, and may be larger than any that a client may send."""


class ForwardedCall(NativeCall):
    """A call that a sibling has sent on: to its handler, the call of the client itself."""

    __slots__ = ("_epoch", "_hop")

    def __init__(
        self,
        connection: CallConnection,
        stream: Stream,
        method: Method,
        metadata: Metadata,
        client: Hop,
        deadline_at: float | None,
        trace: TraceContext | None,
        epoch: int,
    ) -> None:
        super().__init__(connection, stream, method, metadata, deadline_at)
        self._hop = client
        self._epoch = epoch
        self.hop = FORWARDED_HOP
        self.parent = trace
        if client.identity is not None:
            self.prove(client.identity)

    @property
    def epoch(self) -> int:
        return self._epoch

    def peer(self) -> str:
        return self._hop.peer

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        # A copy: what a handler does with it is no matter of other calls.
        return {name: list(values) for name, values in self._hop.auth.items()}


class SiblingConnection(NativeConnection):
    """See the module. Owned by its listener."""

    trusted = True
    goodbye_s: ClassVar[float] = SIBLING_GOODBYE_S

    def __init__(self, owner: ConnectionOwner) -> None:
        # What a client would not get of an answer's metadata, its shard does not get either.
        limits = replace(SIBLING_LIMITS, sent_metadata=owner.limits.max_sent_metadata)
        super().__init__(owner, limits=limits, max_message=MAX_SIBLING_MESSAGE)
        self._limits = limits
        self._link: LinkServer | None = None
        self._has_begun = False
        """The sibling has said by its first bytes which protocol it speaks."""

    def connected(self) -> None:
        self.peer = addresses.peer(self.transport)
        if not self._owner.opened(self):
            self.transport.abort()
        # Nothing is written yet: the sibling says which protocol it speaks.

    def data_received(self, data: Read) -> None:
        if not self._has_begun:
            self._has_begun = True
            if data[:1] == MAGIC[:1]:
                self._link = LinkServer(self._limits, max_message=MAX_SIBLING_MESSAGE)
                self.wire = self._link
        super().data_received(data)

    def _accept(self, stream: Stream, method: Method) -> bool:
        if isinstance(stream, ForwardedStream):
            return self._accept_forwarded(stream, method, stream.client, stream.deadline_at, stream.trace, stream.epoch)
        if hop.HOP_MARK not in stream.fields:
            return super()._accept(stream, method)
        try:
            client = hop.read(stream.fields)
        except ValueError as error:
            self._refuse_headers(stream, error)
            return False
        return self._accept_forwarded(stream, method, client, client.deadline_at, client.trace, client.epoch)

    def _accept_forwarded(
        self,
        stream: Stream,
        method: Method,
        client: Hop,
        deadline_at: float | None,
        trace: TraceContext | None,
        epoch: int,
    ) -> bool:
        try:
            metadata, _ = stream.metadata()
        except BadWire as error:
            self._refuse_headers(stream, error)
            return False
        # Where its deadline has passed on the way it expires at once, and this shard counts it, as its sender expects.
        call = stream.call = ForwardedCall(self, stream, method, metadata, client, deadline_at, trace, epoch)
        if self._owner.compression:
            call.set_compression(self._owner.compression)
        return True

    def _refuse_headers(self, stream: Stream, error: Exception) -> None:
        self.wire.finish(stream, framing.INTERNAL, f"a forwarded call has bad headers: {error}")

    def _send_answer(self, call: NativeCall, reply: bytes) -> None:
        stream = call.stream
        if (
            not isinstance(stream, ForwardedStream)
            or call.code_now is not OK
            or call.has_stream
            or stream.sent_headers
            or stream.encoding
            or len(call.trailers) > 1
            or self._link is None
            or not self._link.answer_whole(stream, reply, tuple(call.trailers))
        ):
            super()._send_answer(call, reply)

    def reset(self, stream: Stream, error: int) -> None:
        # The sibling may have ended the call of its client with a status of its own.
        if stream.call is not None and (code := framing.status_of_reset(error)) != framing.CANCELLED:
            stream.call.end_early(STATUS_OF_NUMBER[code], "ended by the shard that has forwarded it")
        super().reset(stream, error)

    def cut_off(self, call: NativeCall, code: int, details: str, trailers: Metadata = ()) -> None:
        if call.state is not ARRIVED and call.stream.id in self.wire.streams:
            # The lane counts it.
            self.wire.finish(call.stream, code, details, (*trailers, (SERVED, "")))
        super().cut_off(call, code, details, trailers)
