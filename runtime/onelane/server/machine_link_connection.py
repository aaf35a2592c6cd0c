"""The connection of a shard of another machine. It is a sibling's, and what it sends counts as such.

Its clock is another one: the deadline of a call that it forwards is what is left of it, as its `grpc-timeout` says.
"""

from time import monotonic
from typing import Protocol

from onelane.core import addresses
from onelane.core.hop import Hop
from onelane.core.trace_context import TraceContext
from onelane.server.connection import ConnectionOwner, NativeConnection
from onelane.server.methods import Method
from onelane.server.sibling_connection import SiblingConnection
from onelane.wire import framing
from onelane.wire.driver import Read
from onelane.wire.framing import BadWire
from onelane.wire.server import Stream


class LinkPort(Protocol):
    """What has accepted the connection."""

    def enter(self, connection: NativeConnection) -> bool:
        """Its handshake is over: whether its peer is a machine of this cluster."""


class MachineLinkConnection(SiblingConnection):
    """See the module. Owned by its listener."""

    def __init__(self, owner: ConnectionOwner, port: LinkPort) -> None:
        super().__init__(owner)
        self._port = port

    def connected(self) -> None:
        self.peer = addresses.peer(self.transport)
        if self._port.enter(self) and self._owner.opened(self):
            self.flush()
        else:
            self.transport.abort()

    def data_received(self, data: Read) -> None:
        # Of HTTP/2 alone: the frames of `wire/link` have deadlines by the sender's clock.
        self._has_begun = True
        super().data_received(data)

    def _accept_forwarded(
        self,
        stream: Stream,
        method: Method,
        client: Hop,
        deadline_at: float | None,
        trace: TraceContext | None,
        epoch: int,
    ) -> bool:
        timeout = stream.value(b"grpc-timeout")
        try:
            at = monotonic() + framing.read_timeout(timeout) if timeout else None
        except BadWire as error:
            self._refuse_headers(stream, error)
            return False
        return super()._accept_forwarded(stream, method, client, at, trace, epoch)
