"""What a server answers to a request that breaks gRPC's rules, or only looks as if it did.

`grpcio` is what grpcio really answers, and both listeners must: `HTTP status/grpc-status` as `Answer.seen` writes it.
Where the native one differs on purpose, `native` is its answer and `why` the reason.
"""

import gzip
import zlib
from dataclasses import dataclass

from tests.interop.raw import Headers, request
from tests.interop.v1 import messages_pb2 as m

MAX_MESSAGE = 2_000_000
SERVICE = b"/grpc.testing.TestService/"
EMPTY, UNARY, DOWNLOAD = SERVICE + b"EmptyCall", SERVICE + b"UnaryCall", SERVICE + b"StreamingOutputCall"
UPLOAD, DUPLEX = SERVICE + b"StreamingInputCall", SERVICE + b"FullDuplexCall"
GZIP, BROTLI = (b"grpc-encoding", b"gzip"), (b"grpc-encoding", b"brotli")
SOON = (b"grpc-timeout", b"200m")
"""For what a server never answers: the deadline does then. A listener that does answer is given NOT_SOON."""
NOT_SOON = (b"grpc-timeout", b"100S")
"""For an answer that must come before the deadline, however busy the machine."""


def frame(message: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


ASK = m.SimpleRequest(response_size=3).SerializeToString()
ONE = frame(ASK)
PACKED = gzip.compress(ASK)
LATE = "200/4"
NOT_UTF8 = b"\x3a\x04\x12\x02\xff\xfe"
"""A SimpleRequest whose status message is no UTF-8."""
LARGEST = m.SimpleRequest(payload=m.Payload(body=bytes(MAX_MESSAGE - 8))).SerializeToString()
TRUNCATED = "grpcio waits for the rest for ever; a stream that ends in the middle of a message is broken"
IGNORED = "grpcio drops what is left of a message; a stream that ends in the middle of one is broken"
CARDINALITY = "statuscodes.md: any number of requests but one is UNIMPLEMENTED"
CONTENT_TYPE = "PROTOCOL-HTTP2.md: other content types are answered with HTTP 415"
MALFORMED = "RFC 9113 8.1.1: a malformed request is a stream error PROTOCOL_ERROR"
METHOD = "RFC 9110 15.5.6: 405 and what is allowed; grpcio's answers do not say what is wrong"
FLAG = "PROTOCOL-HTTP2.md: the flag is 0 or 1"
EOS = "PROTOCOL-HTTP2.md: a request ends with EOS; until then a second message may come, and refuse the call"
TIMEOUT = "PROTOCOL-HTTP2.md: at most 8 digits, then the unit"
ENCODING = "compression.md: a message in an encoding that is not known is UNIMPLEMENTED"


@dataclass(frozen=True)
class Row:
    name: str
    headers: Headers
    pieces: tuple[bytes, ...]
    grpcio: str
    native: str = ""
    why: str = ""
    end: bool = True

    def answer_of(self, listener: str) -> str:
        return (listener == "native" and self.native) or self.grpcio

    def headers_for(self, listener: str) -> Headers:
        """The deadline is near only where it is what ends the call."""
        is_late = self.answer_of(listener) == LATE
        return [NOT_SOON if pair == SOON and not is_late else pair for pair in self.headers]


def unary(name: str, pair: tuple[bytes, bytes], grpcio: str, native: str = "", why: str = "") -> Row:
    """A call that is fine but for one header."""
    return Row(name, request(UNARY, pair), (ONE,), grpcio, native, why)


def body(name: str, path: bytes, piece: bytes, grpcio: str, native: str = "", why: str = "") -> Row:
    """A call that is fine but for its body."""
    return Row(name, request(path), (piece,), grpcio, native, why)


ROWS = (
    Row("fine", request(UNARY), (ONE,), "200/0"),
    Row("fine and in pieces", request(UNARY), (ONE[:3], ONE[3:]), "200/0"),
    Row("fine and of no bytes", request(EMPTY), (frame(b""),), "200/0"),
    Row(
        "fine and without a last word",
        request(UNARY, SOON),
        (ONE,),
        "200/0",
        "200/4",
        EOS,
        end=False,
    ),
    Row("fine and of the largest size", request(UNARY), (frame(LARGEST),), "200/0"),
    # HTTP
    unary("content-type grpc+proto", (b"content-type", b"application/grpc+proto"), "200/0"),
    unary("content-type grpc;charset", (b"content-type", b"application/grpc;charset=utf-8"), "200/0"),
    unary("content-type html", (b"content-type", b"text/html"), "200/0", "415/-", CONTENT_TYPE),
    unary("content-type json", (b"content-type", b"application/json"), "200/0", "415/-", CONTENT_TYPE),
    Row("no content-type", request(UNARY, without=(b"content-type",)), (ONE,), "200/0", "415/-", CONTENT_TYPE),
    unary("GET", (b":method", b"GET"), "reset 2", "405/-", METHOD),
    unary("PUT", (b":method", b"PUT"), "reset 2", "405/-", METHOD),
    Row("HEAD", request(UNARY, (b":method", b"HEAD")), (), "200/13", "405/-", METHOD),
    Row(
        *("no te", request(UNARY, without=(b"te",)), (ONE,), "reset 2", "200/0"),
        why="PROTOCOL-HTTP2.md wants it to find proxies that drop trailers, which is none of a server's business",
    ),
    unary("te gzip", (b"te", b"gzip"), "200/13", "reset 1", "RFC 9113 8.2.2: te is `trailers`, or malformed"),
    unary("connection header", (b"connection", b"close"), "200/0", "reset 1", "RFC 9113 8.2.2: malformed"),
    unary("content-length right", (b"content-length", b"%d" % len(ONE)), "200/0"),
    unary("content-length wrong", (b"content-length", b"99"), "200/0", "reset 1", MALFORMED),
    Row("no :scheme", request(UNARY, without=(b":scheme",)), (ONE,), "reset 2", "reset 1", MALFORMED),
    Row("no :method", request(UNARY, without=(b":method",)), (ONE,), "reset 2", "reset 1", MALFORMED),
    Row("no :path", request(UNARY, without=(b":path",)), (ONE,), "reset 2", "reset 1", MALFORMED),
    Row("no :authority", request(UNARY, without=(b":authority",)), (ONE,), "reset 2", "reset 1", MALFORMED),
    Row("host for :authority", request(UNARY, (b"host", b"here"), without=(b":authority",)), (ONE,), "200/0"),
    # Paths
    Row("unknown method", request(SERVICE + b"NoSuchCall"), (ONE,), "200/12"),
    Row("unknown method without an end", request(SERVICE + b"NoSuchCall"), (), "200/12", end=False),
    Row("unknown service", request(b"/no.Such/Call"), (ONE,), "200/12"),
    Row("path /", request(b"/"), (ONE,), "200/12"),
    Row("path with a query", request(UNARY + b"?x=1"), (ONE,), "200/12"),
    Row("path in lower case", request(UNARY.lower()), (ONE,), "200/12"),
    Row("path with a slash more", request(UNARY + b"/"), (ONE,), "200/12"),
    Row("path with an umlaut", request("/grpc.testing.TestService/Ünary".encode()), (ONE,), "200/12"),
    Row("path without a slash", request(UNARY[1:]), (ONE,), "200/12", "reset 1", MALFORMED),
    Row("empty path", request(b""), (ONE,), "200/12", "reset 1", MALFORMED),
    # Compression
    Row("gzip", request(UNARY, GZIP), (frame(PACKED, 1),), "200/0"),
    Row("gzip announced and not used", request(UNARY, GZIP), (ONE,), "200/0"),
    Row("gzip of garbage", request(UNARY, GZIP), (frame(b"garbage", 1),), "200/13"),
    Row("gzip cut off", request(UNARY, GZIP), (frame(PACKED[:-3], 1),), "200/13"),
    Row("gzip and more", request(UNARY, GZIP), (frame(PACKED + b"more", 1),), "200/13"),
    Row("gzip bomb", request(UNARY, GZIP), (frame(gzip.compress(bytes(3 * MAX_MESSAGE)), 1),), "200/8"),
    Row("identity", request(UNARY, (b"grpc-encoding", b"identity")), (ONE,), "200/0"),
    Row("identity and a flag", request(UNARY, (b"grpc-encoding", b"identity")), (frame(ASK, 1),), "200/13"),
    body("a flag and no encoding", UNARY, frame(ASK, 1), "200/13"),
    body("a flag later and no encoding", UPLOAD, frame(b"") + frame(b"", 1), "200/13"),
    Row("unknown encoding", request(UNARY, BROTLI), (frame(ASK, 1),), "200/13", "200/12", ENCODING),
    Row(
        *("unknown encoding announced and not used", request(UNARY, BROTLI), (ONE,), "200/13", "200/0"),
        why="the message is not compressed, so it can be read",
    ),
    Row(
        *("unknown encoding not used, in pieces", request(UNARY, BROTLI), (ONE[:3], ONE[3:]), "200/13", "200/0"),
        why="as above",
    ),
    Row("deflate", request(UNARY, (b"grpc-encoding", b"deflate")), (frame(zlib.compress(ASK), 1),), "200/0"),
    # Messages
    body("flag 2", UNARY, frame(ASK, 2), "200/0", "200/13", FLAG),
    body("flag 255", UNARY, frame(ASK, 255), "200/0", "200/13", FLAG),
    body("over the limit", UNARY, frame(bytes(MAX_MESSAGE + 1)), "200/8"),
    body("over the limit by its prefix", UNARY, b"\0\xff\xff\xff\xff", "200/8"),
    body("over the limit in a stream", UPLOAD, frame(bytes(MAX_MESSAGE + 1)), "200/8"),
    Row("truncated", request(UNARY, SOON), (ONE[:-2],), "200/4", "200/13", TRUNCATED),
    Row("truncated prefix", request(UNARY, SOON), (b"\0\0\0",), "200/4", "200/13", TRUNCATED),
    body("one and a bit", UNARY, ONE + b"\0\0", "200/0", "200/13", IGNORED),
    body("one and a bit in a stream", UPLOAD, frame(b"") + b"\0\0", "200/0", "200/13", IGNORED),
    body("one and a bit both ways", DUPLEX, frame(b"") + b"\0\0", "200/0", "200/13", IGNORED),
    body("two for one", UNARY, ONE + ONE, "200/0", "200/12", CARDINALITY),
    body("two for a download", DOWNLOAD, frame(b"") * 2, "200/0", "200/12", CARDINALITY),
    Row("none for one", request(UNARY, SOON), (), "200/4", "200/12", CARDINALITY),
    Row("none for one, in a DATA frame", request(UNARY, SOON), (b"",), "200/4", "200/12", CARDINALITY),
    Row("none for a download", request(DOWNLOAD, SOON), (), "200/4", "200/12", CARDINALITY),
    Row("none for an upload", request(UPLOAD), (), "200/0"),
    Row("none both ways", request(DUPLEX), (), "200/0"),
    Row("none until the deadline", request(UNARY, SOON), (), "200/4", end=False),
    Row("none until the deadline of an upload", request(UPLOAD, SOON), (), "200/4", end=False),
    body("garbage", UNARY, frame(b"\xff\xff\xff"), "200/13"),
    body("garbage for a download", DOWNLOAD, frame(b"\xff\xff\xff"), "200/13"),
    body("garbage in a stream", UPLOAD, frame(b"\xff\xff\xff"), "200/13"),
    body("garbage both ways", DUPLEX, frame(b"\xff\xff\xff"), "200/13"),
    body("not UTF-8", UNARY, frame(NOT_UTF8), "200/13"),
    # Timeouts
    unary("timeout", (b"grpc-timeout", b"99999999H"), "200/0"),
    unary("timeout without a unit", (b"grpc-timeout", b"10"), "200/13"),
    unary("timeout of an unknown unit", (b"grpc-timeout", b"10x"), "200/13"),
    unary("timeout in words", (b"grpc-timeout", b"soon"), "200/13"),
    unary("timeout below zero", (b"grpc-timeout", b"-1S"), "200/13"),
    unary("timeout with a fraction", (b"grpc-timeout", b"1.5S"), "200/13"),
    unary("timeout of nothing", (b"grpc-timeout", b""), "200/13"),
    unary("timeout of zero", (b"grpc-timeout", b"0S"), "200/4"),
    Row("timeout of zero for a stream", request(DUPLEX, (b"grpc-timeout", b"0n")), (frame(b""),), "200/4"),
    unary("timeout of nine digits", (b"grpc-timeout", b"123456789S"), "200/0", "200/13", TIMEOUT),
    unary("timeout with a space", (b"grpc-timeout", b"10 S"), "200/0", "200/13", TIMEOUT),
    # Metadata
    unary("-bin that is not base64", (b"x-bad-bin", b"*&%$"), "200/13"),
    unary("-bin of one letter", (b"x-bad-bin", b"q"), "200/13"),
    unary("-bin with padding", (b"x-good-bin", b"qw=="), "200/0"),
    unary("-bin without padding", (b"x-good-bin", b"qw"), "200/0"),
    unary("-bin of nothing", (b"x-good-bin", b""), "200/0"),
    unary("-bin in a list", (b"x-good-bin", b"qw,qw"), "200/13", "200/0", "PROTOCOL-HTTP2.md: split at the comma"),
    unary("bytes that are not ASCII", (b"x-high", b"\xff\xfe"), "200/0"),
    unary("bytes that are not ASCII, echoed", (b"x-grpc-test-echo-initial", b"\xff\xfe"), "200/13"),
    unary("spaces around a value", (b"x-wide", b" a "), "200/0", "reset 1", "RFC 9113 8.2.1: malformed"),
    unary("more than 16 KiB", (b"x-big", b"x" * 20_000), "200/8"),
    unary("names of gRPC's that nobody knows", (b"grpc-foo", b"x"), "200/0"),
    Row(
        *("attempts in words", request(UNARY, (b"grpc-previous-rpc-attempts", b"many")), (ONE,), "200/13", "200/0"),
        why="the native listener has no use for it",
    ),
)
