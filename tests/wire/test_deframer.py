"""How the bytes of a stream become messages, whole and unpacked, wherever they are cut."""

import gzip
import itertools
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.wire import framing
from onelane.wire.deframer import Deframer
from onelane.wire.framing import BadWire, frame
from onelane.wire.packed import Packed

messages = st.lists(st.binary(max_size=50), max_size=6)
cuts = st.lists(st.integers(0, 400), max_size=8)


def pieces(data: bytes, where: list[int]) -> list[bytes]:
    """`data` cut at those places."""
    ends = [0, *sorted(min(cut, len(data)) for cut in where), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(ends)]


def packed(message: bytes, encoding: bytes) -> bytes:
    """One frame that is compressed, whatever its size."""
    body = gzip.compress(message, mtime=0) if encoding == b"gzip" else zlib.compress(message)
    return b"\1" + len(body).to_bytes(4, "big") + body


@given(messages, cuts, st.sampled_from([b"", b"gzip", b"deflate"]))
def test_messages_come_whole_however_the_bytes_are_cut(sent: list[bytes], where: list[int], encoding: bytes) -> None:
    deframer = Deframer(limit=100, encoding=encoding)
    wire = b"".join(packed(message, encoding) if encoding else frame(message) for message in sent)
    assert [m for piece in pieces(wire, where) for m in deframer.feed(piece)] == sent
    assert deframer.is_between


@pytest.mark.parametrize(
    ("data", "encoding", "code"),
    [
        (frame(b"x" * 101), b"", framing.RESOURCE_EXHAUSTED),
        (frame(b"x" * 101)[:20], b"", framing.RESOURCE_EXHAUSTED),
        (packed(b"x" * 5000, b"gzip"), b"gzip", framing.RESOURCE_EXHAUSTED),
        (packed(b"x" * 5000, b"deflate"), b"deflate", framing.RESOURCE_EXHAUSTED),
        (packed(b"x", b"gzip"), b"deflate", framing.INTERNAL),
        (b"\x02\0\0\0\0", b"", framing.INTERNAL),
        (packed(b"x", b"gzip"), b"", framing.INTERNAL),
        (b"\x01\0\0\0\x01x", b"gzip", framing.INTERNAL),
        (b"\x01\0\0\0\x0a" + gzip.compress(b"x" * 9, mtime=0)[:10], b"gzip", framing.INTERNAL),
    ],
)
def test_a_message_that_breaks_the_rules_is_refused(data: bytes, encoding: bytes, code: int) -> None:
    with pytest.raises(BadWire) as caught:
        Deframer(limit=100, encoding=encoding).feed(data)
    assert caught.value.code == code


@given(cuts)
def test_an_unknown_encoding_matters_to_compressed_messages_alone_however_they_are_cut(where: list[int]) -> None:
    plain, compressed = frame(b"hello"), b"\1" + frame(b"hello")[1:]
    deframer = Deframer(limit=9, encoding=b"snappy")
    assert [m for piece in pieces(plain, where) for m in deframer.feed(piece)] == [b"hello"]
    with pytest.raises(BadWire, match="'snappy' is not supported") as caught:
        list(map(deframer.feed, pieces(compressed, where)))
    assert caught.value.code == framing.UNIMPLEMENTED


@given(st.binary(max_size=300) | st.integers(0, 100_000).map(bytes), st.integers(1, 200_000))
def test_a_packed_message_is_unpacked_in_steps_of_any_size(message: bytes, step: int) -> None:
    (message_packed,) = Deframer(limit=100_000, encoding=b"gzip", unpacks=False).feed(packed(message, b"gzip"))
    assert isinstance(message_packed, Packed)
    steps = 1
    while not message_packed.advance(max(step, 50)):
        assert message_packed.size <= steps * max(step, 50)
        steps += 1
    assert message_packed.message() == message


def test_a_packed_message_over_the_limit_is_unpacked_no_further_than_that() -> None:
    packed = Packed(gzip.compress(bytes(1_000_000)), b"gzip", 100_000)
    assert not packed.advance(60_000)
    with pytest.raises(BadWire, match="larger than max"):
        packed.advance(60_000)
    assert packed.size == 100_001
    with pytest.raises(BadWire, match="larger than max"):
        packed.advance(1)


def test_a_message_in_tiny_pieces_holds_about_its_own_size() -> None:
    size = 200_000
    deframer = Deframer(limit=size, encoding=b"")
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        deframer.feed(frame(b"x" * size)[:5])
        for _ in range(size // 2 - 1):
            deframer.feed(b"xx")
        assert tracemalloc.get_traced_memory()[0] - before < 2 * size
    finally:
        tracemalloc.stop()
    assert deframer.feed(b"xx") == [b"x" * size]
