"""What gRPC writes over HTTP/2, byte by byte."""

import gzip
import itertools
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.wire import framing
from onelane.wire.deframer import Deframer
from onelane.wire.framing import BadWire, accepts, frame, frame_compressed

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


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate"])
@given(st.binary(max_size=60) | st.integers(0, 2000).map(bytes))
def test_a_message_is_compressed_where_that_makes_it_smaller(encoding: bytes, message: bytes) -> None:
    framed = frame_compressed(encoding, message)
    assert len(framed) <= len(frame(message))
    assert Deframer(limit=5000, encoding=encoding).feed(framed) == [message]
    assert framed[0] == (len(framed) < len(frame(message)))


@pytest.mark.parametrize(
    ("accepted", "encoding", "is_accepted"),
    [
        (b"identity, deflate, gzip", b"gzip", True),
        (b"identity,deflate", b"deflate", True),
        (b"identity, x-gzip", b"gzip", False),
        (b"", b"gzip", False),
    ],
)
def test_an_encoding_is_accepted_by_its_whole_name(accepted: bytes, encoding: bytes, is_accepted: bool) -> None:
    assert accepts(accepted, encoding) == is_accepted


@given(cuts)
def test_an_unknown_encoding_matters_to_compressed_messages_alone_however_they_are_cut(where: list[int]) -> None:
    plain, compressed = frame(b"hello"), b"\1" + frame(b"hello")[1:]
    deframer = Deframer(limit=9, encoding=b"snappy")
    assert [m for piece in pieces(plain, where) for m in deframer.feed(piece)] == [b"hello"]
    with pytest.raises(BadWire, match="'snappy' is not supported") as caught:
        list(map(deframer.feed, pieces(compressed, where)))
    assert caught.value.code == framing.UNIMPLEMENTED


@given(st.floats(1e-9, 3e11, allow_nan=False))
def test_a_timeout_never_grows_and_loses_little(seconds: float) -> None:
    text = framing.write_timeout(seconds)
    assert len(text) <= 9
    read = framing.read_timeout(text)
    assert read <= seconds * (1 + 1e-9)
    assert read >= min(seconds * 0.98 - 1e-9, 99999999 * 3600 * 0.98)


@pytest.mark.parametrize("text", [b"", b"5", b"S", b"-1S", b"5x", b"123456789S", b"1.5S"])
def test_a_malformed_timeout_is_refused(text: bytes) -> None:
    with pytest.raises(BadWire, match="grpc-timeout"):
        framing.read_timeout(text)


names = st.text("abcxyz0189._-", min_size=1, max_size=9).filter(
    lambda n: not n.startswith("grpc-") and n not in ("te", "host") and not n.endswith("-bin")
)
texts = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=9)
entries = st.lists(
    st.tuples(names, texts) | st.tuples(names.map(lambda n: f"{n}-bin"), st.binary(max_size=9)), max_size=6
)


@given(entries)
def test_metadata_is_read_as_it_was_written(metadata: list[tuple[str, str | bytes]]) -> None:
    assert framing.read_metadata(framing.write_metadata(metadata)) == tuple(metadata)


def test_http_and_grpc_headers_are_not_metadata() -> None:
    headers = [(b":path", b"/a/B"), (b"te", b"trailers"), (b"grpc-timeout", b"1S"), (b"x", b"y"), (b"b-bin", b"/w,AA")]
    assert framing.read_metadata(headers) == (("x", "y"), ("b-bin", b"\xff"), ("b-bin", b"\0"))


def test_binary_metadata_that_is_not_base64_is_refused() -> None:
    with pytest.raises(BadWire, match="not base64"):
        framing.read_metadata([(b"x-bin", b"!!")])


@given(st.text())
def test_details_survive_percent_encoding(details: str) -> None:
    written = framing.write_message(details.encode("utf-8", "ignore").decode())
    assert all(0x20 <= byte <= 0x7E for byte in written)
    assert framing.read_message(written) == details.encode("utf-8", "ignore").decode()


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
