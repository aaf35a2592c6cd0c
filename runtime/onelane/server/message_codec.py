"""Messages of a method as protobuf or as JSON, for protocols that let their client choose."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor

from onelane.core import keys
from onelane.errors import caused
from onelane.wire.framing import INVALID_ARGUMENT, BadWire

_NO_SIDE_EFFECTS = 1
"""Of `google.protobuf.MethodOptions.IdempotencyLevel`."""


class ProtoCodec:
    """As gRPC has them."""

    name = b"proto"

    def read(self, message: bytes) -> bytes:
        return message

    def write(self, message: bytes) -> bytes:
        return message


@dataclass(frozen=True, slots=True)
class JsonCodec:
    """Protobuf's JSON mapping, as Connect wants it: a field that the message does not have is ignored."""

    request_type: Any
    reply_type: Any
    name: bytes = b"json"

    def read(self, message: bytes) -> bytes:
        """A request as protobuf.

        Raises:
            BadWire: it is no JSON of that message.
        """
        try:
            request = json_format.Parse(message, self.request_type(), ignore_unknown_fields=True)
            return bytes(request.SerializeToString())
        except Exception as error:
            # ParseError, and what deep nesting, huge numbers and bytes that are no UTF-8 raise.
            name = self.request_type.DESCRIPTOR.full_name
            bad = BadWire(f"the request is no JSON of {name}: {str(error)[:200]}", code=INVALID_ARGUMENT)
            raise caused(bad, error) from error

    def write(self, message: bytes) -> bytes:
        """An answer as JSON."""
        return json_format.MessageToJson(self.reply_type.FromString(message), indent=None).encode()


MessageCodec = ProtoCodec | JsonCodec
AS_PROTO = ProtoCodec()


@cache
def json_codec(path: str) -> JsonCodec | None:
    """The JSON of the method `/pkg.Service/Method`; None where its proto is not known."""
    descriptor = keys.describe(path)
    if descriptor is None:
        return None
    message_class = message_factory.GetMessageClass
    return JsonCodec(message_class(descriptor.input_type), message_class(descriptor.output_type))


@cache
def has_side_effects(path: str) -> bool:
    """Whether a method does not promise, by its option `idempotency_level`, to be without."""
    descriptor: MethodDescriptor | None = keys.describe(path)
    return descriptor is None or descriptor.GetOptions().idempotency_level != _NO_SIDE_EFFECTS
