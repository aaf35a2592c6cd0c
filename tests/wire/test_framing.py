"""What gRPC writes over HTTP/2, byte by byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.wire import framing
from onelane.wire.deframer import Deframer
from onelane.wire.framing import BadWire, accepts, frame, frame_compressed


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
