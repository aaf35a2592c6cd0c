"""The bytes of a request as its message, and the answer of a handler as bytes.

Promises: an answer that is not the method's message raises BadHandler, with the line of the handler.
"""

import inspect
from typing import Any

from google.protobuf.message import Message

from onelane.errors import Malformed, caused
from onelane.server import user_code
from onelane.server.arguments import BadHandler
from onelane.server.call import OK, Call
from onelane.server.methods import Method


def parse(method: Method, request: bytes) -> Any:
    """The message of `request`.

    Raises:
        Malformed: it is none.
    """
    if method.deserialize is None:
        return request
    try:
        return method.deserialize(request)
    except Exception as error:
        raise caused(Malformed(f"the request of {method.name} is not the message it should be"), error) from error


def bytes_of(method: Method, call: Call, answer: Any) -> bytes:
    """The answer as bytes; none where the handler has chosen another status than OK.

    Raises:
        BadHandler: it is not the method's message.
    """
    if call.code_now is not OK:
        return b""
    if type(answer) is method.reply_type:
        return method.serialize(answer)  # type: ignore[misc]
    return _serialize_other(method, answer)


def serialize(method: Method, answer: Any) -> bytes:
    """One answer of a stream as bytes."""
    if type(answer) is method.reply_type:
        return method.serialize(answer)  # type: ignore[misc]
    return _serialize_other(method, answer)


def _serialize_other(method: Method, answer: Any) -> bytes:
    """Serialize what is not of the method's own class: for a serializer of the service's own, or to be refused."""
    expected = method.reply_type
    if expected is not None and not _is_message(answer, expected.DESCRIPTOR.full_name):  # type: ignore[attr-defined]
        raise bad_answer(method, answer, expected.DESCRIPTOR.full_name)  # type: ignore[attr-defined]
    try:
        raw = answer if method.serialize is None else method.serialize(answer)
    except Exception as error:
        bad = bad_answer(method, answer, f"what its serializer takes: {user_code.summary(error)}")
        bad.line = user_code.line_of(error) or bad.line
        raise caused(bad, error) from error
    if isinstance(raw, bytes):
        return raw
    if isinstance(raw, bytearray | memoryview):
        return bytes(raw)
    raise bad_answer(method, answer, "bytes, or what its serializer makes bytes of")


def _is_message(answer: Any, full_name: str) -> bool:
    """Whether it is a message of that name; its class may be another, of another descriptor pool."""
    return isinstance(answer, Message) and answer.DESCRIPTOR.full_name == full_name


def bad_answer(method: Method, answer: Any, expected: str) -> BadHandler:
    if inspect.iscoroutine(answer):
        answer.close()
    kind = "None" if answer is None else f"an object of class {type(answer).__qualname__}"
    text = f"{method.name} has answered {kind}, expected {expected}"
    return BadHandler(text, line=user_code.definition_of(method.handler))
