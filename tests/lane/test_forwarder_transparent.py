"""Forwarding is transparent: what a client and a handler see of a call is equal where its key is at home and away."""

import asyncio

import pytest

from tests.mirror.app import SHAPES, Mirrored, Row, Side

MANY = tuple((b"x-own-%d" % number, b"v" * 100) for number in range(110))
"""With what gRPC itself sends, some 15.9 KB as HTTP/2 counts them."""
LIES = (
    (b"onelane-forwarded", b";1"),
    (b"onelane-forwarded-peer", b"ipv4:6.6.6.6:6"),
    (b"onelane-forwarded-auth", b'{"x509_common_name":["root"]}'),
    (b"onelane-forwarded-trace", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"),
    (b"onelane-hop", b"1"),
    (b"onelane-served", b"me"),
)
GZIP = (b"grpc-accept-encoding", b"identity,gzip")
UTF8 = "größer ✓ €\n%"


def metadata(name: str, *headers: tuple[bytes, bytes], expected: str = "200/0") -> Row:
    return Row(f"metadata: {name}", headers, expected=expected)


ROWS = [
    Row("nothing"),
    metadata("plain", (b"x-own", b"1"), (b"x-own", b"2"), (b"x-empty", b"")),
    metadata("UTF-8", (b"x-own", UTF8.replace("\n", "").encode())),
    metadata("bytes that are no UTF-8", (b"x-own", b"\xff\xfe")),
    metadata("a tab", (b"x-own", b"a\tb")),
    metadata("names that grpcio refuses", (b"x*own!", b"1"), (b"x~|^", b"2"), expected=""),
    metadata("binary", (b"x-own-bin", b"AAEC/w"), (b"x-own-bin", b"AA=="), (b"x-empty-bin", b"")),
    metadata("binary in a list", (b"x-own-bin", b"AA,AQ"), expected=""),
    metadata("no base64", (b"x-own-bin", b"*&%$"), expected="200/13"),
    metadata("names of gRPC's", (b"grpc-foo", b"1"), (b"grpc-tags-bin", b"AA"), (b"grpc-previous-rpc-attempts", b"1")),
    metadata("a trace", (b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-00"), (b"tracestate", b"v=1")),
    metadata("baggage and a chain", (b"baggage", b"a=b"), (b"onelane-chain", b"0001@s/m")),
    metadata("a user agent", (b"user-agent", b"me/1"), (b"accept-encoding", b"br")),
    metadata("nearly 16 KiB", *MANY),
    metadata("more than 16 KiB", *MANY, (b"x-more", b"v" * 1000), expected="200/8"),
    metadata("a lie about the client", *LIES),
    Row("deadline: far", ((b"grpc-timeout", b"30S"),)),
    Row("deadline: it passes", ((b"grpc-timeout", b"150m"),), {"sleeps": True}, expected="200/4"),
    Row("deadline: has passed", ((b"grpc-timeout", b"0S"),), expected="200/4"),
    Row("deadline: malformed", ((b"grpc-timeout", b"soon"),), expected=""),
    Row("compression: the app's", (GZIP,), {"answers": 3, "size": 10_000}),
    Row("compression: none, by the handler", (GZIP,), {"compress": "NoCompression", "answers": 3, "size": 10_000}),
    Row("compression: gzip", (GZIP,), {"compress": "Gzip", "answers": 3, "size": 10_000}),
    Row("compression: not of each message", (GZIP,), {"compress": "Gzip", "answers": 3, "size": 9_999, "plain": [0]}),
    Row("compression: with initial metadata", (GZIP,), {"compress": "Gzip", "initial": [["x-first", "1"]]}),
    Row("compression: the client takes none", (), {"compress": "Gzip", "size": 10_000}),
    Row("compression: identity alone", ((b"grpc-accept-encoding", b"identity"),), {"compress": "Gzip"}),
    Row("compression: deflate", ((b"grpc-accept-encoding", b"deflate,gzip,identity"),), {"compress": "Deflate"}),
    Row(
        "compression: and a failure", (GZIP,), {"compress": "Gzip", "answers": 0, "abort": "ABORTED"}, expected="200/10"
    ),
    Row("compression: of the requests", ((b"grpc-encoding", b"gzip"),), request_size=10_000, packed=True),
    Row("size: of the requests", request_size=390_000),
    Row("size: of the requests, too large", request_size=410_000, expected="200/8"),
    Row("size: of the answers", order={"answers": 2, "size": 1_000_000}),
    Row("size: no answer", order={"answers": 0}),
    Row("size: an empty answer", order={"size": 0}),
    Row("status: text", order={"answers": 0, "abort": "NOT_FOUND", "details": "gone"}, expected="200/5"),
    Row("status: UTF-8", order={"answers": 0, "abort": "NOT_FOUND", "details": UTF8}, expected="200/5"),
    Row("status: no details", order={"answers": 0, "abort": "DATA_LOSS"}, expected="200/15"),
    Row("status: set", order={"code": "OUT_OF_RANGE", "details": "far"}, expected="200/11"),
    Row("status: after answers", order={"answers": 2, "abort": "CANCELLED", "details": "no"}, expected="200/1"),
    Row("status: UNAVAILABLE", order={"answers": 0, "abort": "UNAVAILABLE", "details": "later"}, expected="200/14"),
    Row("status: of an exception", order={"answers": 0, "raise": "oh"}, expected="200/13"),
    Row(
        "status: with details in binary",
        order={"answers": 0, "abort": "ABORTED", "trailers": [["grpc-status-details-bin", "000aff"]]},
        expected="200/10",
    ),
    Row("trailers", order={"trailers": [["x-last", "1"], ["x-last", "2"], ["x-last-bin", "00ff2c"], ["grpc-x", "1"]]}),
    Row("initial metadata", order={"initial": [["x-first", "1"], ["x-first", "2"], ["x-first-bin", "00ff"]]}),
    Row("initial metadata: none", order={"initial": []}),
    Row(
        "initial metadata: and a failure",
        order={"answers": 0, "initial": [["x-first", "1"]], "abort": "ABORTED", "details": "no"},
        expected="200/10",
    ),
]
REFUSED_BY_GRPCIO = {
    *("metadata: no base64", "metadata: more than 16 KiB", "metadata: names that grpcio refuses"),
    "deadline: malformed",
}
"""Before our code sees the call, and slowly: one shape will do."""


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_a_call_is_the_same_at_home_and_away(mirrored: Mirrored, row: Row) -> None:
    is_refused = mirrored.listener == "grpcio" and row.name in REFUSED_BY_GRPCIO
    of_headers = row.name.startswith("metadata")
    for method in ["Unary"] if is_refused else ["Unary", "Chat"] if of_headers else SHAPES:
        home = await asyncio.to_thread(mirrored.home.see, method, row)
        away = await asyncio.to_thread(mirrored.away.see, method, row)
        assert away == home, method
        if row.expected and mirrored.listener == "native":
            assert home["seen"] == row.expected, (method, home)


async def test_a_handler_sees_the_client_and_its_certificate(mirrored: Mirrored) -> None:
    for side in (mirrored.home, mirrored.away):
        handler = (await asyncio.to_thread(side.see, "Unary", metadata("a lie", *LIES)))["handler"]
        assert handler["peer"] == "the client"
        assert not any(name.startswith("onelane-forwarded") for name, _ in handler["metadata"])
        assert "b'client.example'" in handler["identities"]


@pytest.mark.parametrize("initial", [[], [["x-first", "1"]]], ids=["empty", "not empty"])
async def test_initial_metadata_of_a_unary_call_come_before_its_answer(mirrored: Mirrored, initial: list[str]) -> None:
    for side in (mirrored.home, mirrored.away):
        await asyncio.to_thread(_see_headers_first, side, initial)


def _see_headers_first(side: Side, initial: list[str]) -> None:
    with side.call("Hold", Row("held", order={"initial": initial})) as held:
        held.wait_headers()
        assert (held.answer.headers.get(b"x-first", b""), held.answer.is_over) == (b"1" if initial else b"", False)
        side.see("Release", Row("release"))
        assert held.wait_answered().seen == "200/0"
