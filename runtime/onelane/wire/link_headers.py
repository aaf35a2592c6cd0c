"""The headers of a client's call that is sent on over the link, in two parts: what many calls of the client have in
common, which the owner of the key knows by a number, and what this call has alone."""

from collections.abc import Iterable
from typing import Any, Final

from onelane.core.hop import HOP_HEADERS
from onelane.core.trace_context import TRACEPARENT, TRACESTATE
from onelane.wire.framing import Headers, HeaderTuple

OF_ONE_HOP: Final = frozenset(
    {
        *(b":method", b":scheme", b":path", b":authority", b"host", b"te", b"content-type", b"content-length"),
        *(b"grpc-timeout", b"grpc-encoding"),
        *HOP_HEADERS,
    }
)
"""Headers of a client that are written anew where its call is sent on. Every other one passes as it came."""
_OF_ONE_CALL: Final = frozenset({TRACEPARENT.encode(), TRACESTATE.encode()})
"""Headers that differ from call to call of the same client, beside those of `OF_ONE_HOP`."""


class LastHeaders:
    """Parts the headers of the calls of one client, and remembers those of the last call: the next one mostly has the
    same. The same pairs, not equal ones: these may be secret to their sender."""

    __slots__ = ("_common", "_headers", "_identity", "_method")

    def __init__(self) -> None:
        self._headers: tuple[Any, ...] = ()
        self._identity: Headers | None = None
        self._method = ""
        self._common: HeaderTuple = ()

    def apart(self, headers: tuple[Any, ...], identity: Headers, method: str) -> tuple[HeaderTuple, Headers]:
        """See `headers_apart`."""
        if identity is self._identity and method == self._method and _are_same(headers, self._headers):
            return self._common, []
        common, own = headers_apart(headers, identity, method)
        if not own:
            self._headers, self._identity, self._method, self._common = headers, identity, method, common
        return common, own


def _are_same(headers: tuple[Any, ...], others: tuple[Any, ...]) -> bool:
    if len(headers) != len(others):
        return False
    for at in range(len(headers)):  # noqa: SIM110 - compiled, a generator is made for each call
        if headers[at] is not others[at]:
            return False
    return True


def headers_apart(headers: Iterable[Any], identity: Headers, method: str) -> tuple[HeaderTuple, Headers]:
    """The headers of a client's call in two parts, without what the link has fields for."""
    common: Headers = []
    own: Headers = []
    for pair in headers:
        name = pair[0]
        if name in OF_ONE_HOP:
            continue
        if name in _OF_ONE_CALL or type(pair) is not tuple:
            # A header that is secret to its sender is another type, and is not remembered.
            own.append(pair)
        else:
            common.append(pair)
    common += identity
    common.append((b":path", method.encode()))
    return tuple(common), own
