"""gRPC-Web, binary and in base64: the messages and trailers of gRPC in the body of one response."""

from base64 import b64decode, b64encode

import pytest
from onelane.server.web_body import decoded_text
from onelane.wire.framing import BadWire

from tests.echo.v1 import echo_pb2 as m
from tests.web import SENDERS, Response, Send

BINARY, TEXT = "application/grpc-web+proto", "application/grpc-web-text"


def framed(request: m.EchoRequest) -> bytes:
    message = request.SerializeToString()
    return b"\0" + len(message).to_bytes(4, "big") + message


def frames_of(answer: Response) -> list[tuple[int, bytes]]:
    """Flag and bytes of each frame."""
    body = answer.body
    if answer.headers["content-type"].startswith(TEXT):
        body = decoded_text(body)
    frames = []
    while body:
        end = 5 + int.from_bytes(body[1:5], "big")
        frames.append((body[0], body[5:end]))
        body = body[end:]
    return frames


@pytest.mark.parametrize("kind", [BINARY, TEXT])
@pytest.mark.parametrize("key", ["home", "away"])
def test_a_call_is_answered_as_it_was_sent(address: str, send: Send, kind: str, key: str) -> None:
    body = framed(m.EchoRequest(key=key, text="hi"))
    body = b64encode(body) if kind == TEXT else body
    answer = send(address, "/echo.v1.Echo/Unary", body, headers={"content-type": kind})
    assert (answer.status, answer.headers["content-type"]) == (200, kind)
    (flag, message), (end, trailers) = frames_of(answer)
    assert (flag, m.EchoReply.FromString(message).text) == (0, "hi")
    assert (end, trailers) == (0x80, b"grpc-status: 0\r\n")


@pytest.mark.parametrize("kind", [BINARY, TEXT])
def test_a_stream_of_answers_has_its_trailers_last(address: str, send: Send, kind: str) -> None:
    body = framed(m.EchoRequest(key="away", text="x", times=3))
    body = b64encode(body) if kind == TEXT else body
    answer = send(address, "/echo.v1.Echo/Download", body, headers={"content-type": kind})
    assert [flag for flag, _ in frames_of(answer)] == [0, 0, 0, 0x80]


def test_messages_are_compressed_for_a_client_that_reads_that(address: str, send: Send) -> None:
    body = framed(m.EchoRequest(key="home", text="x" * 1000, times=1, order="gzip"))
    headers = {"content-type": BINARY, "grpc-accept-encoding": "gzip"}
    answer = send(address, "/echo.v1.Echo/Download", body, headers=headers)
    assert answer.headers["grpc-encoding"] == "gzip"
    assert [flag for flag, _ in frames_of(answer)] == [1, 0x80]


def test_an_error_is_in_the_trailers(address: str, send: Send) -> None:
    body = framed(m.EchoRequest(key="away", order="rich"))
    answer = send(address, "/echo.v1.Echo/Misbehave", body, headers={"content-type": BINARY})
    [(flag, trailers)] = frames_of(answer)
    assert (answer.status, flag) == (200, 0x80)
    assert b"grpc-message: " in trailers
    assert b"grpc-status-details-bin: " in trailers
    assert b"grpc-status: 0" not in trailers


@pytest.mark.parametrize(
    ("path", "headers", "body", "status"),
    [
        ("/echo.v1.Echo/None", {}, b"", 12),
        ("/echo.v1.Echo/Unary", {"grpc-timeout": "soon"}, b"", 13),
        ("/echo.v1.Echo/Unary", {"grpc-timeout": "0n"}, b"", 4),
        ("/echo.v1.Echo/Unary", {"grpc-encoding": "zstd"}, b"\1\0\0\0\1x", 12),
        ("/echo.v1.Echo/Unary", {}, b"\1\0\0\0\1x", 13),
        ("/echo.v1.Echo/Unary", {}, b"\x80\0\0\0\1x", 13),
        ("/echo.v1.Echo/Unary", {}, b"\0\0\0\0\5x", 13),
        ("/echo.v1.Echo/Unary", {}, b"\0\xff\0\0\0", 8),
        ("/echo.v1.Echo/Unary", {"content-type": TEXT}, b"!!!!", 3),
        ("/echo.v1.Echo/Unary", {"content-type": TEXT}, b"AAAAA", 13),
    ],
)
def test_what_is_wrong_with_a_request_is_said_in_the_trailers(
    address: str, path: str, headers: dict[str, str], body: bytes, status: int
) -> None:
    answer = SENDERS["HTTP/1.1"](address, path, body, headers={"content-type": BINARY} | headers)
    assert f"grpc-status: {status}\r\n".encode() in frames_of(answer)[-1][1]


def test_base64_may_be_padded_anywhere() -> None:
    text = b64encode(b"a") + b64encode(b"bc") + b64encode(b"def") + b64encode(b"g")
    assert decoded_text(text) == b"abcdefg"
    assert b64decode(b64encode(b"abc")) == decoded_text(b64encode(b"abc"))
    with pytest.raises(BadWire):
        decoded_text(b"a=bc")
