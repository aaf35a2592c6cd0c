"""Cross-origin resource sharing: which pages a browser lets call this app. Source: https://fetch.spec.whatwg.org.

A page of the app's own origin needs none of this. The content types of gRPC-Web and Connect make a browser ask first
(a preflight), but for a Connect GET, which has no side effects: so a page of any other origin does nothing here.
"""

from collections.abc import Mapping

from onelane.config import CorsSettings
from onelane.wire.framing import Headers

_NO_CONTENT, _FORBIDDEN = b"204", b"403"
_METHODS = b"GET, POST"
_ALWAYS_READABLE = frozenset({b"content-type", b"content-length", b"vary"})
"""Not named to a browser: a page may read them anyway, or has no use for them."""


class Cors:
    """The settings of one app, applied."""

    def __init__(self, settings: CorsSettings) -> None:
        self._origins = {origin.encode() for origin in settings.origins}
        self._credentials = settings.credentials
        self._max_age = b"%d" % settings.max_age_s

    def allows(self, fields: Mapping[bytes, bytes]) -> bool:
        """Whether the request comes from a page of an origin that the settings name."""
        origin = fields.get(b"origin")
        return origin is not None and (origin in self._origins or b"*" in self._origins)

    def of_answer(self, fields: Mapping[bytes, bytes], headers: Headers) -> Headers:
        """What an answer with `headers` says to the browser."""
        if not self._origins:
            return []
        if not self.allows(fields):
            return [(b"vary", b"origin")]
        names = sorted({name for name, _ in headers} - _ALWAYS_READABLE)
        return [*self._allowed(fields), (b"access-control-expose-headers", b", ".join(names))]

    def of_preflight(self, fields: Mapping[bytes, bytes]) -> Headers:
        """The answer to the question whether a page may call, its status first."""
        if not self.allows(fields):
            return [(b":status", _FORBIDDEN)]
        asked = fields.get(b"access-control-request-headers", b"")
        return [
            (b":status", _NO_CONTENT),
            *self._allowed(fields),
            (b"access-control-allow-methods", _METHODS),
            # The origin is trusted: so are the headers that its pages send.
            *([(b"access-control-allow-headers", asked)] if asked else []),
            (b"access-control-max-age", self._max_age),
        ]

    def _allowed(self, fields: Mapping[bytes, bytes]) -> Headers:
        credentials = [(b"access-control-allow-credentials", b"true")] if self._credentials else []
        return [(b"access-control-allow-origin", fields[b"origin"]), *credentials, (b"vary", b"origin")]
