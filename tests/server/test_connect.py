"""Connect's unary calls and streams, as curl sends them: the same calls as gRPC's, to the same shards."""

import gzip
import json
from typing import Any

import pytest
from google.protobuf import json_format
from onelane.server import connect
from onelane.wire.framing import BadWire

from tests.echo.v1 import echo_pb2 as m
from tests.web import JSON, SENDERS, Send

PROTO = {"content-type": "application/proto"}
STREAM = {"content-type": "application/connect+json"}


def text(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


@pytest.mark.parametrize(("key", "shard"), [("home", "echo-0"), ("away", "echo-1")])
def test_json_is_answered_in_json_by_the_owner_of_its_key(address: str, send: Send, key: str, shard: str) -> None:
    answer = send(address, "/echo.v1.Echo/Unary", text(key=key, text="hi"))
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert (answer.json["text"], answer.json["shard"]) == ("hi", shard)


def test_protobuf_is_answered_in_protobuf(address: str, send: Send) -> None:
    request = m.EchoRequest(key="home", text="hi").SerializeToString()
    answer = send(address, "/echo.v1.Echo/Plain", request, headers=PROTO)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/proto")
    assert m.EchoReply.FromString(answer.body).text == "hi"


@pytest.mark.parametrize("key", ["home", "away"])
def test_a_rich_error_is_json_with_the_status_of_its_code(address: str, send: Send, key: str) -> None:
    answer = send(address, "/echo.v1.Echo/Misbehave", text(key=key, order="rich"))
    error = answer.json
    assert (answer.status, error["code"]) == (dict(connect.CODES)[error["code"]], error["code"])
    detail = error["details"][0]
    assert detail["type"].startswith("google.rpc.")
    assert detail["debug"]


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        ({"connect-timeout-ms": "1"}, text(key="away", order="sleep 30"), 504, "deadline_exceeded"),
        ({"connect-timeout-ms": "0"}, text(key="away"), 504, "deadline_exceeded"),
        ({"connect-timeout-ms": "soon"}, text(key="home"), 400, "invalid_argument"),
        ({"connect-protocol-version": "2"}, text(key="home"), 400, "invalid_argument"),
        ({"content-encoding": "zstd"}, text(key="home"), 501, "unimplemented"),
        ({"content-encoding": "gzip"}, b"no gzip", 500, "internal"),
        ({"content-encoding": "gzip"}, gzip.compress(bytes(100_000)), 429, "resource_exhausted"),
        ({}, bytes(70_000), 429, "resource_exhausted"),
        ({}, b"", 400, "invalid_argument"),
        ({}, b"{", 400, "invalid_argument"),
        ({}, b"\xff", 400, "invalid_argument"),
        ({}, b'{"key":' + b"[" * 30_000, 400, "invalid_argument"),
        ({}, b'{"times":' + b"9" * 30_000 + b"}", 400, "invalid_argument"),
        ({}, text(key=""), 400, "invalid_argument"),
    ],
)
def test_what_is_wrong_with_a_request_is_said_in_json(
    address: str, headers: dict[str, str], body: bytes, status: int, code: str
) -> None:
    answer = SENDERS["HTTP/1.1"](address, "/echo.v1.Echo/Misbehave", body, headers=JSON | headers)
    assert (answer.status, answer.json["code"]) == (status, code)


def test_compressed_requests_are_read_and_answers_compressed_as_the_handler_wants(address: str, send: Send) -> None:
    body = gzip.compress(text(key="home", text="hi" * 100))
    answer = send(address, "/echo.v1.Echo/Unary", body, headers=JSON | {"content-encoding": "gzip"})
    assert answer.json["text"] == "hi" * 100


def test_metadata_come_as_headers_and_trailers_with_a_prefix(address: str, send: Send) -> None:
    answer = send(address, "/echo.v1.Echo/Misbehave", text(key="home", order="metadata"))
    assert any(name.startswith("trailer-") for name in answer.headers), answer


def enveloped(*messages: bytes, flag: int = 0) -> bytes:
    return b"".join(bytes([flag]) + len(message).to_bytes(4, "big") + message for message in messages)


def envelopes(body: bytes) -> list[tuple[int, Any]]:
    cut: list[tuple[int, Any]] = []
    while body:
        end = 5 + int.from_bytes(body[1:5], "big")
        cut.append((body[0], json.loads(body[5:end])))
        body = body[end:]
    return cut


@pytest.mark.parametrize("key", ["home", "away"])
def test_streams_both_ways_end_with_an_envelope(address: str, send: Send, key: str) -> None:
    down = send(address, "/echo.v1.Echo/Download", enveloped(text(key=key, text="x", times=3)), headers=STREAM)
    *messages, end = envelopes(down.body)
    assert ([message["text"] for _, message in messages].count("x"), end) == (3, (2, {}))
    up = send(address, "/echo.v1.Echo/Upload", enveloped(text(key=key, text="a"), text(key=key)), headers=STREAM)
    assert [flag for flag, _ in envelopes(up.body)] == [0, 2]


@pytest.mark.parametrize(
    "body",
    [
        enveloped(b"{"),
        enveloped(text(key="home"), flag=1),
        enveloped(text(key="home"), flag=7),
        enveloped(text(key="home"))[:-2],
        b"\0\xff\xff\xff\xff",
        b"",
    ],
)
def test_a_stream_that_lies_ends_with_an_error_in_its_last_envelope(address: str, body: bytes) -> None:
    answer = SENDERS["HTTP/1.1"](address, "/echo.v1.Echo/Upload", body, headers=STREAM)
    flag, end = envelopes(answer.body)[-1]
    assert (answer.status, flag) == (200, 2)
    assert end["error"]["code"] in ("internal", "invalid_argument", "resource_exhausted", "unimplemented")


@pytest.mark.parametrize("timeout", [b"", b"1.5", b"-1", b"12345678901", b"\xd9\xa1"])
def test_a_timeout_is_at_most_ten_digits(timeout: bytes) -> None:
    with pytest.raises(BadWire, match="connect-timeout-ms"):
        connect.read_timeout(timeout)


def test_json_is_what_protobuf_makes_of_it(address: str, send: Send) -> None:
    request = json_format.MessageToJson(m.EchoRequest(key="home", text="\N{GREEK SMALL LETTER PI}\n")).encode()
    assert send(address, "/echo.v1.Echo/Unary", request).json["text"] == "\N{GREEK SMALL LETTER PI}\n"
