"""Browsers and curl on the port of gRPC: which protocol a request speaks, and its call. See `wire.web`.

Three kinds of requests: `application/grpc-web…`; Connect, unary (`application/json`, `application/proto`, or a GET) and
streams (`application/connect+…`); and what is none of them, which is refused with an HTTP status.
"""

import json
import re
from base64 import urlsafe_b64decode
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import parse_qs

from onelane.server import connect, message_codec
from onelane.server.connect import StreamAnswer, UnaryAnswer
from onelane.server.cors import Cors
from onelane.server.grpc_web import GrpcWebAnswer
from onelane.server.message_codec import AS_PROTO, MessageCodec
from onelane.server.methods import Method
from onelane.server.web_body import EnvelopedBody, QueryBody, TextBody, WholeBody, message_of
from onelane.server.web_output import WebOutput, accepted
from onelane.wire import framing
from onelane.wire.framing import INVALID_ARGUMENT, RESERVED, BadWire, Headers, HeaderTuple
from onelane.wire.header_size import LONGEST_FIELD, has_long_field
from onelane.wire.http2 import Limits
from onelane.wire.server import Stream
from onelane.wire.web import RequestBody, WebAnswer, WebStream

_NOT_FOUND, _METHOD_NOT_ALLOWED, _UNSUPPORTED_MEDIA_TYPE = b"404", b"405", b"415"
_HEADERS_TOO_LARGE, _VERSION_NOT_SUPPORTED = b"431", b"505"
_ACCEPTED = b"application/json, application/proto, application/connect+json, application/connect+proto"
_ACCEPTED += b", application/grpc-web+proto, application/grpc-web-text+proto"
_GRPC_WEB = re.compile(rb"application/grpc-web(?:-text)?(?:\+(proto|json))?")
_CONNECT = re.compile(rb"application/(connect\+)?(proto|json)")
_NAME = re.compile(rb"[0-9a-z_.-]+")
_OF_HTTP = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"http2-settings"),
        *(b"expect", b"trailer", b"content-encoding", b"x-grpc-web", b"x-user-agent"),
        *(b"connect-protocol-version", b"connect-timeout-ms"),
        *(b"connect-content-encoding", b"connect-accept-encoding"),
    }
)
"""Headers that are neither the application's nor gRPC's."""
_POST: Headers = [(b":method", b"POST")]
_GRPC: Headers = [(b"te", b"trailers"), (b"content-type", b"application/grpc")]


class Refusal(Exception):
    """A request gets an HTTP status, and no call."""

    def __init__(self, status: bytes, *headers: tuple[bytes, bytes], body: bytes = b"") -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers = list(headers)


@dataclass(frozen=True, slots=True)
class Translation:
    """A request in terms of gRPC."""

    body: RequestBody
    timeout: bytes = b""
    """As `grpc-timeout`."""
    accepts: bytes = b""
    """As `grpc-accept-encoding`."""


Translator = tuple[WebAnswer, Callable[[], Translation]]
"""What answers a request, and what translates it. The latter raises BadWire, with which the former answers."""


class Web:
    """See the module; `wire.server.WebTranslator`. Owned by its listener."""

    def __init__(self, methods: Mapping[bytes, Method], *, max_message: int, limits: Limits, cors: Cors) -> None:
        self._methods = methods
        self._max_message = max_message
        self._max_metadata = limits.max_metadata
        self._cors = cors

    def open(self, request: Stream, http: Any) -> Stream | None:
        fields = request.fields
        output = WebOutput(http, request.id, lambda headers: self._cors.of_answer(fields, headers))
        try:
            return self._opened(request, output)
        except Refusal as refusal:
            output.whole(refusal.status, refusal.headers, refusal.body)
        return None

    def _opened(self, request: Stream, output: WebOutput) -> Stream | None:
        fields = request.fields
        if request.size > self._max_metadata or (request.size > LONGEST_FIELD and has_long_field(request.headers)):
            raise Refusal(_HEADERS_TOO_LARGE)
        path, _, query = request.path.partition(b"?")
        method = fields.get(b":method", b"")
        if method == b"OPTIONS" and b"access-control-request-method" in fields:
            status, *headers = self._cors.of_preflight(fields)
            output.begin(status[1], headers, end=True)
            return None
        if method == b"GET":
            answer, translate = self._get(path, query, fields, output)
        elif method == b"POST":
            answer, translate = self._post(path, fields, output)
        else:
            raise Refusal(_METHOD_NOT_ALLOWED, (b"allow", b"POST"))
        try:
            return _stream(request, path, answer, translate())
        except BadWire as error:
            answer.finish(error.code, str(error), [])
            return None

    def _post(self, path: bytes, fields: Mapping[bytes, bytes], output: WebOutput) -> Translator:
        kind = fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if match := _GRPC_WEB.fullmatch(kind):
            codec = self._codec(path, match[1] or b"proto")
            make_body = TextBody if kind.startswith(b"application/grpc-web-text") else EnvelopedBody
            return GrpcWebAnswer(output, codec, kind), partial(self._grpc_web, codec, make_body, fields)
        match = _CONNECT.fullmatch(kind)
        if match is None:
            is_grpc = kind == b"application/grpc" or kind.startswith(b"application/grpc+")
            raise Refusal(_VERSION_NOT_SUPPORTED) if is_grpc else _unsupported()
        if self._method(path).has_stream != bool(match[1]):
            raise _unsupported()
        codec = self._codec(path, match[2])
        if match[1]:
            return StreamAnswer(output, codec), partial(self._connect_stream, codec, fields)
        return UnaryAnswer(output, codec), partial(self._connect_unary, codec, fields)

    def _grpc_web(
        self, codec: MessageCodec, make_body: type[EnvelopedBody], fields: Mapping[bytes, bytes]
    ) -> Translation:
        encoding = _encoding(fields.get(b"grpc-encoding", b""))
        return Translation(
            body=make_body(codec, encoding=encoding, limit=self._max_message),
            timeout=fields.get(b"grpc-timeout", b""),
            accepts=accepted(fields.get(b"grpc-accept-encoding", b"")),
        )

    def _connect_unary(self, codec: MessageCodec, fields: Mapping[bytes, bytes]) -> Translation:
        encoding = _encoding(fields.get(b"content-encoding", b""))
        return Translation(
            body=WholeBody(codec, encoding=encoding, limit=self._max_message),
            timeout=_timeout(fields),
            accepts=accepted(fields.get(b"accept-encoding", b"")),
        )

    def _connect_stream(self, codec: MessageCodec, fields: Mapping[bytes, bytes]) -> Translation:
        encoding = _encoding(fields.get(b"connect-content-encoding", b""))
        return Translation(
            body=EnvelopedBody(codec, encoding=encoding, limit=self._max_message),
            timeout=_timeout(fields),
            accepts=accepted(fields.get(b"connect-accept-encoding", b"")),
        )

    def _get(self, path: bytes, query: bytes, fields: Mapping[bytes, bytes], output: WebOutput) -> Translator:
        if self._method(path).has_stream or message_codec.has_side_effects(path.decode("latin-1")):
            raise Refusal(_METHOD_NOT_ALLOWED, (b"allow", b"POST"))
        values = {name: texts[-1] for name, texts in parse_qs(query, keep_blank_values=True).items()}
        codec = self._codec(path, values.get(b"encoding", b""))
        return UnaryAnswer(output, codec), partial(self._query, codec, values, fields)

    def _query(self, codec: MessageCodec, values: Mapping[bytes, bytes], fields: Mapping[bytes, bytes]) -> Translation:
        if values.get(b"connect", b"v1") != b"v1":
            raise BadWire("the query's connect is not v1", code=INVALID_ARGUMENT)
        encoding = _encoding(values.get(b"compression", b""))
        message = message_of(_query_message(values), codec, encoding=encoding, limit=self._max_message)
        return Translation(
            body=QueryBody(message),
            timeout=_timeout(fields),
            accepts=accepted(fields.get(b"accept-encoding", b"")),
        )

    def _method(self, path: bytes) -> Method:
        method = self._methods.get(path)
        if method is None:
            body = connect.error_of(framing.UNIMPLEMENTED, f"Method not found: {path.decode('latin-1')}", [])
            raise Refusal(_NOT_FOUND, *connect.JSON_HEADERS, body=json.dumps(body).encode())
        return method

    def _codec(self, path: bytes, name: bytes) -> MessageCodec:
        if name == b"proto":
            return AS_PROTO
        codec = None
        if name == b"json":
            # Of a method that is not served, the answer has no message.
            codec = message_codec.json_codec(path.decode("latin-1")) if path in self._methods else AS_PROTO
        if codec is None:
            raise _unsupported()
        return codec


def _unsupported() -> Refusal:
    return Refusal(_UNSUPPORTED_MEDIA_TYPE, (b"accept-post", _ACCEPTED))


def _encoding(name: bytes) -> bytes:
    """The compression of a Connect request; b"" for none."""
    if name not in framing.KNOWN_ENCODINGS:
        text = name.decode("latin-1")
        known = framing.ENCODINGS.decode()
        raise BadWire(f"compression {text!r} is not supported, expected one of {known}", code=framing.UNIMPLEMENTED)
    return name


def _timeout(fields: Mapping[bytes, bytes]) -> bytes:
    """A `connect-timeout-ms` as gRPC has it; b"" for none. Raises BadWire."""
    version = fields.get(b"connect-protocol-version", b"1")
    if version != b"1":
        raise BadWire(f"connect-protocol-version is {version.decode('latin-1')!r}, not 1", code=INVALID_ARGUMENT)
    text = fields.get(b"connect-timeout-ms")
    if text is None:
        return b""
    try:
        seconds = connect.read_timeout(text)
    except BadWire as error:
        raise BadWire(str(error), code=INVALID_ARGUMENT) from None
    return framing.write_timeout(seconds) if seconds else b"0n"


def _query_message(values: Mapping[bytes, bytes]) -> bytes:
    raw = values.get(b"message", b"")
    if values.get(b"base64") != b"1":
        return raw
    try:
        return urlsafe_b64decode(raw + b"=" * (-len(raw) % 4))
    except ValueError:
        raise BadWire("the query's message is no base64", code=INVALID_ARGUMENT) from None


def _stream(request: Stream, path: bytes, answer: WebAnswer, translation: Translation) -> WebStream:
    """The stream of a gRPC client that had sent this request."""
    application: HeaderTuple = tuple(
        pair
        for pair in request.headers
        if pair[0] not in RESERVED and pair[0] not in _OF_HTTP and _NAME.fullmatch(pair[0])
    )
    fields = request.fields
    headers: Headers = [*_POST, (b":scheme", fields.get(b":scheme", b"http")), (b":path", path)]
    headers += [(b":authority", fields.get(b":authority", b"")), *_GRPC]
    agent = fields.get(b"user-agent", fields.get(b"x-user-agent", b""))
    named = (
        (b"grpc-timeout", translation.timeout),
        (b"grpc-accept-encoding", translation.accepts),
        (b"user-agent", agent),
    )
    headers += [(name, value) for name, value in named if value]
    timeout: float | None = None
    if translation.timeout:
        timeout = -1.0
        with suppress(BadWire):
            timeout = framing.read_timeout(translation.timeout)
    return WebStream(request, path, (*headers, *application), application, timeout, translation.body, answer)
