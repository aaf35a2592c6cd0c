"""One call that came by our own wire."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any, ClassVar, Protocol

import grpc

from onelane.core.hop import write_proven
from onelane.core.identity import Identity
from onelane.server.call import Call, Metadata, Metadatum
from onelane.server.methods import Method
from onelane.wire import framing
from onelane.wire.framing import Headers, HeaderTuple
from onelane.wire.link_headers import LastHeaders
from onelane.wire.packed import Packed
from onelane.wire.server import ServerConnection, Stream


class CallConnection(Protocol):
    """A connection as its calls see it."""

    wire: ServerConnection
    trusted: bool
    peer: str
    auth: Mapping[str, Iterable[bytes]]
    proves_identities: bool
    """The identity of a client was proven in a call on it."""

    def flush_soon(self) -> None:
        """Write what is ready at the end of this turn of the loop."""

    def send(self, stream: Stream, message: bytes) -> Coroutine[Any, Any, None] | None:
        """Send a message, not compressed; returns what its sender awaits where the client does not read."""

    def send_frame(self, stream: Stream, frame: bytes) -> Coroutine[Any, Any, None] | None:
        """`send` a message that has its prefix."""

    def streams_requests(self, call: "NativeCall") -> bool:
        """Whether the client sends a stream of messages."""

    async def unpack(self, call: "NativeCall", packed: Packed) -> bytes:
        """Unpack a message that the handler wants to read."""

    def consumed(self, stream: Stream) -> None:
        """The handler has read what came: let the client send more."""

    def answer(self, call: "NativeCall", reply: bytes) -> None:
        """The call has ended: send its outcome."""

    def identity_headers(self) -> Headers:
        """What the owner of a call's key is told of its client. See `core/hop`."""

    def last_headers(self) -> LastHeaders:
        """The headers of the last call that was sent on."""

    def proceed(self, call: "NativeCall") -> None:
        """The turn of the call has come."""

    def cut_off(self, call: "NativeCall", code: int, details: str, trailers: Metadata = ()) -> None:
        """End the call with a status of our own, whatever its handler does."""

    def expired(self, call: "NativeCall") -> None:
        """The deadline of the call has passed."""


class NativeCall(Call):
    """A call whose bytes come through our own wire."""

    tells_cancellation: ClassVar[bool] = True
    packed_reply: bytes
    """The one message of its answer, compressed by the owner of its key, with its prefix; else not set."""

    __slots__ = (
        "_arrived",
        "_connection",
        "_deadline_at",
        "_frame_compressed",
        "_has_all",
        "_messages",
        "_next_is_compressed",
        "has_stream",
        "packed_reply",
        "slot",
        "stream",
        "task",
    )

    def __init__(
        self,
        connection: CallConnection,
        stream: Stream,
        method: Method,
        metadata: Metadata,
        deadline_at: float | None,
    ) -> None:
        """deadline_at: by the monotonic clock, in seconds; None without one."""
        super().__init__(method.path, metadata, trusted=connection.trusted)
        self.stream = stream
        self.has_stream = method.has_stream
        self.slot = 0
        self.task: asyncio.Task[None] | None = None
        self._connection = connection
        self._deadline_at = deadline_at
        self._messages: deque[bytes] | None = None
        self._arrived: asyncio.Future[None] | None = None
        self._has_all: bool | tuple[int, str] = False
        """The client has ended its stream (`stream.ended` runs ahead of the events), or has broken the protocol on it:
        a status."""
        self._frame_compressed: Callable[[bytes], bytes] | None = None
        """None where messages are not compressed."""
        self._next_is_compressed = True

    async def receive(self) -> bytes | None:
        if self._messages is None:
            self._messages = deque()
        while not self._messages:
            if self._has_all or (self.stream.ended and not self._connection.streams_requests(self)):
                # The message of a call that has but one was its handler's argument.
                self._check_end()
                return None
            if self.stream.unread:
                self._connection.consumed(self.stream)
            self._arrived = asyncio.get_running_loop().create_future()
            await self._arrived
        message = self._messages.popleft()
        return await self._connection.unpack(self, message) if isinstance(message, Packed) else message

    def _check_end(self) -> None:
        """Its handler has read all messages. Where the client has broken the protocol after them, the call ends."""
        if isinstance(self._has_all, tuple):
            self._connection.cut_off(self, *self._has_all)
            raise asyncio.CancelledError

    async def send(self, message: bytes) -> None:
        sending = self.begin_send(message)
        if sending is not None:
            await sending

    def begin_send(self, message: bytes) -> Coroutine[Any, Any, None] | None:
        if self._frame_compressed is None:
            return self._connection.send(self.stream, message)
        return self._connection.send_frame(self.stream, self.framed(message))

    async def send_initial(self, metadata: Metadata) -> None:
        self.send_initial_now(metadata)

    def send_initial_now(self, metadata: Metadata) -> None:
        self._connection.wire.send_headers(self.stream, tuple(metadata))
        self._connection.flush_soon()

    def time_remaining(self) -> float | None:
        return None if self._deadline_at is None else max(0.0, self._deadline_at - monotonic())

    @property
    def deadline_at(self) -> float | None:
        return self._deadline_at

    def invocation_metadata(self) -> Sequence[Metadatum]:
        pairs = super().invocation_metadata()
        agent = self.stream.value(b"user-agent")
        return (Metadatum("user-agent", agent.decode("latin-1")), *pairs) if agent else pairs

    def answer(self, reply: bytes) -> None:
        self._connection.answer(self, reply)

    def proceed(self) -> None:
        self._connection.proceed(self)

    def peer(self) -> str:
        return self._connection.peer

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        # A copy: what a handler does with it is no matter of other calls.
        return {name: list(values) for name, values in self._connection.auth.items()}

    def set_compression(self, compression: grpc.Compression) -> None:
        super().set_compression(compression)
        encoding, frame_compressed = framing.FRAMERS.get(compression, (b"", None))
        # Any other answer its client could not read.
        if encoding and not framing.accepts(self.stream.value(b"grpc-accept-encoding"), encoding):
            encoding, frame_compressed = b"", None
        self.stream.encoding, self._frame_compressed = encoding, frame_compressed

    def disable_next_message_compression(self) -> None:
        self._next_is_compressed = False

    def client_headers(self) -> Iterable[Any]:
        return self.stream.headers

    def identity_headers(self) -> Headers:
        headers = self._connection.identity_headers()
        if not self._connection.proves_identities or self.identity is None:
            return headers
        return [*headers, write_proven(self.identity)]

    def headers_apart(self) -> tuple[HeaderTuple, Headers]:
        return self._connection.last_headers().apart(self.stream.headers, self.identity_headers(), self.method)

    def prove(self, identity: Identity) -> None:
        super().prove(identity)
        self._connection.proves_identities = True

    def answer_in(self, encoding: bytes) -> None:
        # Its messages come compressed.
        self.stream.encoding, self._frame_compressed = encoding, None

    def reply_of(self, frame: bytes, encoding: bytes) -> bytes:
        if frame[0]:
            self.packed_reply = frame
        # The owner has chosen, also where it has not compressed.
        self._frame_compressed = None
        return frame[framing.PREFIX :]

    async def send_frame(self, frame: bytes, encoding: bytes) -> None:
        sending = self._connection.send_frame(self.stream, frame)
        if sending is not None:
            await sending

    # Used by the connection

    def framed(self, message: bytes) -> bytes:
        """`message` as it goes on the wire."""
        if self._frame_compressed is None:
            return framing.frame(message)
        compresses, self._next_is_compressed = self._next_is_compressed, True
        return self._frame_compressed(message) if compresses else framing.frame(message)

    def discard_unread(self) -> None:
        """It has ended: let go of what was not read. A timer or a task of its handler may keep the call itself, by the
        context that it was made in."""
        if self._messages is not None:
            self._messages.clear()
        self._pushed_back = None
        self.stream.discard_partial()

    def cut_off(self, code: grpc.StatusCode, details: str, trailers: Metadata) -> None:
        self._connection.cut_off(self, code.value[0], details, trailers)

    def expire(self) -> None:
        self._connection.expired(self)

    @property
    def unread_messages(self) -> int:
        """The number of messages that have arrived and have not been read."""
        return len(self._messages or ())

    def take_message(self) -> bytes:
        """The next message, which has arrived."""
        assert self._messages is not None
        return self._messages.popleft()

    def arrived(self, messages: list[bytes], *, last: bool) -> None:
        self._has_all = self._has_all or last
        if self._messages is None:
            self._messages = deque()
        self._messages += messages
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def broken(self, code: int, details: str) -> None:
        """The client has broken the protocol: the call ends with this status once the messages before are read."""
        self._has_all = (code, details)
        self.arrived([], last=True)
