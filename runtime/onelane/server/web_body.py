"""The bodies of requests of gRPC-Web and Connect, from bytes to messages of gRPC. See `wire.web.RequestBody`."""

from base64 import b64decode

from onelane.server.message_codec import MessageCodec
from onelane.wire.deframer import Deframer
from onelane.wire.framing import INVALID_ARGUMENT, WINDOW_BITS, BadWire
from onelane.wire.packed import Packed, too_large

_QUANTUM = 4
"""Characters of base64 that make whole bytes."""


def message_of(data: bytes, codec: MessageCodec, *, encoding: bytes, limit: int) -> bytes:
    """The message of gRPC in a body. Of a compressed one it is `Packed`: a few kilobytes of it make megabytes, so it is
    unpacked in pieces, once its call is admitted. encoding: b"" for none.

    Raises:
        BadWire: it is not compressed, and cannot be read.
    """
    if encoding not in WINDOW_BITS:
        return codec.read(data)
    packed = Packed(data, encoding, limit)
    packed.translation = codec.read
    return packed


class WholeBody:
    """A body that is one message, and ends with it."""

    is_whole = False
    """Only the end says that it is."""

    def __init__(self, codec: MessageCodec, *, encoding: bytes, limit: int) -> None:
        self._codec = codec
        self._encoding = encoding
        self._limit = limit
        self._data = bytearray()

    @property
    def buffered(self) -> int:
        return len(self._data)

    def feed(self, data: bytes) -> list[bytes]:
        self._data += data
        if len(self._data) > self._limit:
            raise too_large(len(self._data), self._limit)
        return []

    def end(self) -> list[bytes]:
        return [message_of(bytes(self._data), self._codec, encoding=self._encoding, limit=self._limit)]


class QueryBody:
    """The message of a GET, which has come in its query."""

    is_whole = False
    buffered = 0

    def __init__(self, message: bytes) -> None:
        self._message = message

    def feed(self, data: bytes) -> list[bytes]:
        if data:
            raise BadWire("a GET has no body", code=INVALID_ARGUMENT)
        return []

    def end(self) -> list[bytes]:
        return [self._message]


class EnvelopedBody:
    """Messages with a prefix of five bytes, as in gRPC."""

    def __init__(self, codec: MessageCodec, *, encoding: bytes, limit: int) -> None:
        self._codec = codec
        self._deframer = Deframer(limit=limit, encoding=encoding, unpacks=False)

    @property
    def is_whole(self) -> bool:
        return self._deframer.is_between

    @property
    def buffered(self) -> int:
        return self._deframer.buffered

    def feed(self, data: bytes) -> list[bytes]:
        messages: list[bytes] = []
        try:
            cut = self._deframer.feed(data)
        except BadWire as error:
            error.messages = [self._read(message) for message in error.messages]
            raise
        for message in cut:
            try:
                messages.append(self._read(message))
            except BadWire as error:
                error.messages = messages
                raise
        return messages

    def _read(self, message: bytes) -> bytes:
        if not isinstance(message, Packed):
            return self._codec.read(message)
        message.translation = self._codec.read
        return message

    def end(self) -> list[bytes]:
        raise BadWire("the request ended in the middle of a message")


class TextBody(EnvelopedBody):
    """The same in base64, in pieces each of which may be padded."""

    def __init__(self, codec: MessageCodec, *, encoding: bytes, limit: int) -> None:
        super().__init__(codec, encoding=encoding, limit=limit)
        self._characters = b""
        """Of base64, too few for whole bytes."""

    @property
    def is_whole(self) -> bool:
        return not self._characters and super().is_whole

    def feed(self, data: bytes) -> list[bytes]:
        text = self._characters + data
        whole = len(text) - len(text) % _QUANTUM
        self._characters = text[whole:]
        return super().feed(decoded_text(text[:whole]))


def decoded_text(text: bytes) -> bytes:
    """Base64 in quanta, of which any may be padded.

    Raises:
        BadWire: it is none.
    """
    parts: list[bytes] = []
    try:
        while (padding := text.find(b"=")) >= 0:
            end = padding - padding % _QUANTUM + _QUANTUM
            parts.append(b64decode(text[:end], validate=True))
            text = text[end:]
        parts.append(b64decode(text, validate=True))
    except ValueError:
        raise BadWire("the request is no base64", code=INVALID_ARGUMENT) from None
    return b"".join(parts)
