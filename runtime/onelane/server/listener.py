"""The seam between bytes and lanes: a listener turns what comes from sockets into calls. See grpcio_listener.py.

A lane never sees a socket; a listener knows no service. The in-memory one of `onelane.testing` passes the same
contract tests.
"""

import asyncio
import logging
import socket
from collections.abc import Collection, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import grpc

from onelane.config import App
from onelane.server.call import Call, Metadata
from onelane.server.connection_counts import ConnectionCounts
from onelane.server.methods import Method
from onelane.telemetry.stats import Stats

if TYPE_CHECKING:
    from onelane.server.machine_link_tls import MachineLinkTls

log = logging.getLogger("onelane.listener")
CANCELLED_S = 1.0
"""How long a call may take to end once it is cancelled, at the end of its shard."""

KEEP_S = 1.0
"""Between two looks at the path of a Unix socket, which cleaners of temporary files may have removed."""


@dataclass(frozen=True, slots=True)
class Bind:
    """One address to listen on."""

    address: str
    """`ip:port`, or `unix:path`."""
    shared: bool = False
    """Other shards listen here too: on the same socket, or, where the listener binds it itself, by SO_REUSEPORT."""
    trusted: bool = False
    """Only siblings can connect, so their runtime metadata counts."""
    sock: socket.socket | None = None
    """Bound and listening already, held by the supervisor; the listener owns this copy. None: bind it yourself."""
    links: "MachineLinkTls | None" = None
    """Shards of other machines connect here, by links. Only the native listener has them."""


Work = Coroutine[Any, Any, None] | None
"""The coroutine to be started for a call to go on; it ends by `call.answer`. None: there is nothing to start now."""


class Serving(Protocol):
    """A lane as a listener sees it."""

    def methods(self) -> Sequence[Method]:
        """Every method it serves; fixed before the listener starts."""

    def announce(self, method: Method, call: Call) -> None:
        """The headers of a call of one message have come, the message has not. Ends a call that may not be made."""
        return

    def serve(self, method: Method, call: Call, request: bytes | None) -> Coroutine[Any, Any, bytes]:
        """Run one call to its end. The outcome stands in `call`; raises only CancelledError."""

    def arrive(self, method: Method, call: Call, request: bytes | None) -> Work:
        """`serve` for listeners that can do without a task for each call; None where it is answered, or waits."""

        async def work() -> None:
            reply = b""
            try:
                reply = await self.serve(method, call, request)
            finally:
                call.state = call.state.end
                call.answer(reply)

        call.state = call.state.begin
        return work()

    def refuses(self, method: Method, call: Call) -> bool:
        """Whether a call cannot be taken now; then it has been answered. Asked before its message is unpacked."""
        return False

    def resume(self, call: Call) -> Work:
        """Go on with a call whose turn has come: `call.proceed` was called."""
        return None

    def withdraw(self, call: Call, *, late: bool) -> None:
        """End a call that waits for its turn: it was cancelled, or (late) its deadline is about to pass."""
        return

    def home_of(self, method: Method, metadata: Metadata, message: bytes | None) -> str | None:
        """The socket of the sibling where a call belongs; "" for here, None where only its first message can tell."""
        return ""

    def connection_counts(self) -> ConnectionCounts:
        """Where its connections are counted; asked for once."""
        return ConnectionCounts(Stats())

    def steered(self) -> None:
        """A sibling has handed a connection over."""
        return

    def untaken(self, change: int, *, trusted: bool) -> None:
        """So many more answers (or fewer) wait until their clients read: their calls count as in flight.

        trusted: the client is a sibling.
        """
        return

    def ended_early(self, method: str, reason: str, *, peer: str) -> None:
        """A call was ended for what its client makes the shard hold. reason: of `onelane.refusals`."""
        return

    def truncated(self, reason: str) -> None:
        """The end of a call was cut to what its client takes. reason: `details`, or `trailers` alone."""
        return


def compression_of(settings: App) -> grpc.Compression:
    """The compression of responses whose handlers choose none."""
    numbers = {"none": 0, "deflate": 1, "gzip": 2}
    return grpc.Compression(numbers[settings.compression])


class Listener(Protocol):
    """Takes calls and gives them to one lane.

    Promised: nothing is taken before `start`; `stop` ends within its grace, and CANCELLED_S where a handler ignores its
    cancellation; an unknown method is UNIMPLEMENTED.
    Not promised: that a message arrives whole in one read, or which shard of a shared address a connection reaches.
    """

    async def start(self, binds: Sequence[Bind], serving: Serving, settings: App) -> None:
        """Listen on all `binds`.

        Raises:
            PortTaken: an address is in use by somebody else; nothing listens then.
        """

    async def drain(self) -> None:
        """Take no new connection of clients, and send away those that stand, where that fails no call."""

    async def stop(self, grace_s: float) -> None:
        """Take no new call; give those under way `grace_s` seconds, then cancel them. May be called again."""

    def under_way(self) -> Sequence[Call]:
        """The calls that have not ended, of clients and siblings, those too whose messages are still to come.

        A listener may have no such method: a drain waits then for the calls of clients that the lane has.
        """


async def end_all(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and wait until they have ended. A handler that ignores its cancellation holds up no shard."""
    for task in tasks:
        task.cancel()
    if not tasks:
        return
    ended, stubborn = await asyncio.wait(tasks, timeout=CANCELLED_S)
    for task in ended:
        if not task.cancelled():
            # Retrieved, so that asyncio does not report it once more.
            task.exception()
    if stubborn:
        log.warning("listener.cancellation_ignored calls=%d", len(stubborn))
