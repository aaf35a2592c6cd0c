"""JSON of messages whose classes are made from a server's descriptors."""

import re
from collections.abc import Sequence
from typing import Any

from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError, Message

from onelane.cli.reflection import Reflection
from onelane.errors import Invalid, NotThere

MAX_ANY_TYPES = 1000
"""Types of the `Any` fields of one message."""


def message_of(text: str, kind: Descriptor, pool: Any) -> Message:
    """A message of a type from its JSON; the names of fields are those of the proto, or in lowerCamelCase.

    Raises:
        Invalid: it is no JSON, or not that of such a message.
    """
    message: Message = message_factory.GetMessageClass(kind)()
    try:
        json_format.Parse(text, message, descriptor_pool=pool)
    except (json_format.ParseError, RecursionError) as error:
        raise Invalid(f"no JSON of {kind.full_name}: {error}: {text[:200]}") from error
    return message


def fill_key(message: Any, paths: Sequence[str], parts: Sequence[str]) -> None:
    """Set the fields of the key. paths: dotted; parts: one for each of them.

    Raises:
        Invalid: another number of parts, a part that its field does not take, or a field that has another value.
    """
    if len(paths) != len(parts):
        raise Invalid(f"the key has {len(paths)} field(s), {', '.join(paths)}; --key is given {len(parts)} time(s)")
    for path, part in zip(paths, parts, strict=True):
        *parents, name = path.split(".")
        owner = message
        for parent in parents:
            owner = getattr(owner, parent)
        value = _value_of(part, owner.DESCRIPTOR.fields_by_name[name])
        if getattr(owner, name) not in (value, owner.DESCRIPTOR.fields_by_name[name].default_value):
            raise Invalid(f"the key {path} is {getattr(owner, name)!r} in the JSON, and {part!r} by --key")
        try:
            setattr(owner, name, value)
        except ValueError as error:
            raise Invalid(f"--key {part}: {path}: {error}") from error


def _value_of(part: str, field: FieldDescriptor) -> str | bytes | int:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return part.encode()
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return part
    if field.enum_type is not None and part in field.enum_type.values_by_name:
        return int(field.enum_type.values_by_name[part].number)
    try:
        return int(part)
    except ValueError as error:
        raise Invalid(f"--key {part}: {field.name} is a number, or a name of its enum") from error


class MessagesAsJson:
    """Turns messages of one server into JSON. The types of `Any` fields are asked for by reflection."""

    def __init__(self, reflection: Reflection, *, with_defaults: bool) -> None:
        """with_defaults: also fields that are not set, as far as they have no presence."""
        self._reflection = reflection
        self._with_defaults = with_defaults

    async def json_of(self, message: Message) -> Any:
        """What `json.dumps` takes. Of an `Any` whose type nobody knows, it has the type alone.

        Raises:
            Invalid: the message has no JSON, such as a Timestamp that is out of range.
        """
        for _ in range(MAX_ANY_TYPES):
            try:
                return json_format.MessageToDict(
                    message,
                    descriptor_pool=self._reflection.pool,
                    always_print_fields_with_no_presence=self._with_defaults,
                )
            except TypeError as error:
                await self._learn(error)
            except (ValueError, DecodeError, json_format.Error, RecursionError) as error:
                raise self._no_json(message, error) from error
        raise self._no_json(message, ValueError(f"more than {MAX_ANY_TYPES} types of Any"))

    async def _learn(self, error: TypeError) -> None:
        """Have the type of an `Any` in the pool, which an error of json_format names."""
        match = re.search(r"type_url: (?:\S*/)?([\w.]+)\s*$", str(error))
        if match is None:
            raise Invalid(f"a response has no JSON: {error}") from error
        try:
            await self._reflection.load(match[1])
            self._reflection.pool.FindMessageTypeByName(match[1])
        except (NotThere, KeyError):
            self._stand_in(match[1])

    def _stand_in(self, name: str) -> None:
        """Add a type of this name that has no fields."""
        package, _, message = name.rpartition(".")
        file = FileDescriptorProto(name=f"unknown/{name}.proto", package=package, syntax="proto3")
        file.message_type.add(name=message)
        try:
            self._reflection.pool.AddSerializedFile(file.SerializeToString())
            self._reflection.pool.FindMessageTypeByName(name)
        except (TypeError, KeyError) as error:
            raise Invalid(f"a response has an Any of the type {name!r}, which is none: {error}") from error

    def _no_json(self, message: Message, error: Exception) -> Invalid:
        return Invalid(f"a message {message.DESCRIPTOR.full_name} of the server has no JSON: {error}")
