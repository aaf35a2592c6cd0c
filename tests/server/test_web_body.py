"""Bodies of Connect and gRPC-Web: their compressed messages are bounded, and not unpacked before they are read."""

import gzip
import tracemalloc
import zlib
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from onelane.server.message_codec import AS_PROTO, MessageCodec, json_codec
from onelane.server.unpacking import UNPACKED_PIECE
from onelane.server.web_body import EnvelopedBody, TextBody, WholeBody
from onelane.wire.framing import RESOURCE_EXHAUSTED, BadWire
from onelane.wire.packed import Packed

from tests.echo.v1 import echo_pb2 as m

MIB = 1024 * 1024
LIMIT = 4 * MIB


def bomb(size: int) -> bytes:
    """Zeros of some GiB as gzip, without its end, from copies of one block."""
    packer = zlib.compressobj(9, wbits=31)
    first = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + block * (size // MIB - 1)


@contextmanager
def costing_at_most(size: int) -> Iterator[None]:
    """What is run within allocates at no time more than `size` bytes of Python's memory."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] <= size
    finally:
        tracemalloc.stop()


def unpack(packed: Packed) -> None:
    while not packed.advance(UNPACKED_PIECE):
        pass


def test_a_gibibyte_in_a_mebibyte_costs_no_more_than_the_limit_of_a_message() -> None:
    data = bomb(1024 * MIB)
    assert len(data) < 1.2 * MIB
    body = WholeBody(AS_PROTO, encoding=b"gzip", limit=LIMIT)
    body.feed(data)
    with costing_at_most(LIMIT + len(data) + MIB):
        [packed] = body.end()
        assert isinstance(packed, Packed)
        with pytest.raises(BadWire, match="larger than max") as raised:
            unpack(packed)
    assert raised.value.code == RESOURCE_EXHAUSTED
    assert packed.size == LIMIT + 1


@pytest.mark.parametrize("make_body", [EnvelopedBody, TextBody])
def test_many_bombs_that_come_at_once_are_not_unpacked_before_they_are_read(make_body: type[EnvelopedBody]) -> None:
    """Each is within the limit of a message: without this, 16 of them in one read would be 64 MiB."""
    packed = gzip.compress(bytes(LIMIT), 9)
    data = b"".join(b"\1" + len(packed).to_bytes(4, "big") + packed for _ in range(16))
    body = make_body(AS_PROTO, encoding=b"gzip", limit=LIMIT)
    data = b64encode(data) if make_body is TextBody else data
    with costing_at_most(MIB):
        messages = body.feed(data)
    assert len(messages) == 16
    assert all(isinstance(message, Packed) and message.size == 0 for message in messages)


@pytest.mark.parametrize("text", [b'{"key": "k", "text": "hi"}', b"{"])
def test_a_compressed_message_in_json_is_translated_once_it_is_unpacked(text: bytes) -> None:
    codec: MessageCodec | None = json_codec("/echo.v1.Echo/Unary")
    assert codec is not None
    body = WholeBody(codec, encoding=b"gzip", limit=LIMIT)
    body.feed(gzip.compress(text))
    [packed] = body.end()
    assert isinstance(packed, Packed)
    if text == b"{":
        with pytest.raises(BadWire, match=r"no JSON of echo\.v1\.EchoRequest"):
            packed.advance(UNPACKED_PIECE)
    else:
        assert packed.advance(UNPACKED_PIECE)
        assert m.EchoRequest.FromString(packed.message()) == m.EchoRequest(key="k", text="hi")
