"""What a handler gives to its context and as its answer, checked where it is given.

Promises: what these functions return can be counted and sent. So no value of a handler raises in the lane or in a
connection, where it would harm other calls.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import grpc

from onelane.server import user_code
from onelane.wire import framing
from onelane.wire.framing import BadWire, Metadata

log = logging.getLogger("onelane.call")
STATUS_OF_NUMBER = {status.value[0]: status for status in grpc.StatusCode}
MAX_SHOWN = 200
"""Characters of a value in an error."""


class BadHandler(TypeError):
    """A handler has broken the contract of gRPC. The text says what was seen and what was expected."""

    def __init__(self, text: str, *, line: str = "") -> None:
        """line: of the handler's code, where no frame of it is in the traceback."""
        super().__init__(text)
        self.line = line


def status_code(code: Any, method: str) -> grpc.StatusCode:
    """The status that `code` names: a grpc.StatusCode or its number. As in grpcio, anything else is UNKNOWN."""
    if isinstance(code, grpc.StatusCode):
        return code
    number = code if isinstance(code, int) else getattr(code, "value", None)
    if isinstance(number, tuple) and number:
        # An enum of the same form as grpc.StatusCode, which grpcio takes too.
        number = number[0]
    status = STATUS_OF_NUMBER.get(number) if isinstance(number, int) else None
    if status is None:
        _warn("call.unknown_code", method, code, "a grpc.StatusCode or 0 to 16; it is answered as UNKNOWN")
        return grpc.StatusCode.UNKNOWN
    return status


def details(text: Any, method: str) -> str:
    """Details as UTF-8 can carry them: a lone surrogate becomes a question mark.

    Raises:
        BadHandler: they are no text.
    """
    if text is None:
        return ""
    if not isinstance(text, str):
        raise BadHandler(f"details are {shown(text)} of {_kind(text)}, expected str")
    try:
        text.encode()
    except UnicodeEncodeError:
        _warn("call.details_replaced", method, text, "text that UTF-8 can encode; lone surrogates become ?")
        return text.encode("utf-8", "replace").decode()
    return text


def metadata(pairs: Any) -> Metadata:
    """Metadata that can be sent, as a tuple of pairs; a text under a name in `-bin` as bytes, which is what is sent.

    Raises:
        BadHandler: they cannot be.
    """
    if isinstance(pairs, Mapping | str | bytes) or not isinstance(pairs, Iterable):
        raise BadHandler(f"Invalid metadata: {shown(pairs)} of {_kind(pairs)}, expected pairs of str and str or bytes")
    checked = []
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise BadHandler(f"Invalid metadata: {shown(pair)}, expected a pair of str and str or bytes")
        name, value = pair
        if isinstance(value, str) and isinstance(name, str) and name.endswith("-bin"):
            pair = (name, value.encode("utf-8", "surrogatepass"))
        checked.append(tuple(pair) if isinstance(pair, list) else pair)
    try:
        framing.write_metadata(checked)
    except BadWire as error:
        raise BadHandler(_cut(str(error))) from error
    return tuple(checked)


def shown(value: Any) -> str:
    """A value as an error shows it, whatever its `__repr__` does."""
    try:
        return _cut(ascii(value))
    except BaseException:
        return f"<{_kind(value)}>"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


def _kind(value: Any) -> str:
    return type(value).__qualname__


def _warn(event: str, method: str, seen: Any, expected: str) -> None:
    line = user_code.calling_line()
    log.warning("%s method=%s at=%s seen=%s expected=%s", event, method[1:], line, shown(seen), expected)
