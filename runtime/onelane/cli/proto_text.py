"""Descriptors as the text of a proto, with the options of onelane: what `onelane describe` prints."""

from collections.abc import Iterator
from itertools import groupby

from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    FieldDescriptor,
    MethodDescriptor,
    OneofDescriptor,
    ServiceDescriptor,
)

from onelane.v1 import options_pb2

INDENT = "  "
_SCALARS = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in vars(FieldDescriptor).items()
    if name.startswith("TYPE_")
}


def text_of(descriptor: Descriptor | EnumDescriptor | MethodDescriptor | ServiceDescriptor) -> str:
    """The declaration of a service, method, message or enum."""
    return "\n".join(_lines(descriptor))


def _lines(descriptor: Descriptor | EnumDescriptor | MethodDescriptor | ServiceDescriptor) -> Iterator[str]:
    if isinstance(descriptor, ServiceDescriptor):
        yield f"service {descriptor.name} {{"
        for method in descriptor.methods:
            yield from _indented(_method_lines(method))
        yield "}"
    elif isinstance(descriptor, EnumDescriptor):
        yield f"enum {descriptor.name} {{"
        yield from (f"{INDENT}{value.name} = {value.number};" for value in descriptor.values)
        yield "}"
    elif isinstance(descriptor, Descriptor):
        yield from _message_lines(descriptor)
    else:
        yield from _method_lines(descriptor)


def _indented(lines: Iterator[str]) -> Iterator[str]:
    return (INDENT + line for line in lines)


def _method_lines(method: MethodDescriptor) -> Iterator[str]:
    request = "stream " * method.client_streaming + method.input_type.full_name
    response = "stream " * method.server_streaming + method.output_type.full_name
    line = f"rpc {method.name}({request}) returns ({response})"
    options = list(_method_options(method))
    if not options:
        yield f"{line};"
        return
    yield f"{line} {{"
    yield from (f"{INDENT}option {option};" for option in options)
    yield "}"


def _method_options(method: MethodDescriptor) -> Iterator[str]:
    extensions = method.GetOptions().Extensions
    if extensions[options_pb2.route] == options_pb2.ANY:
        yield "(onelane.v1.route) = ANY"
    if extensions[options_pb2.turns] == options_pb2.FREE:
        yield "(onelane.v1.turns) = FREE"


def _message_lines(message: Descriptor) -> Iterator[str]:
    yield f"message {message.name} {{"
    for nested in message.nested_types:
        if not nested.GetOptions().map_entry:
            yield from _indented(_message_lines(nested))
    for enum in message.enum_types:
        yield from _indented(_lines(enum))
    for oneof, fields in groupby(message.fields, _oneof_of):
        lines = (_field_line(field) for field in fields)
        if oneof is None:
            yield from _indented(lines)
        else:
            yield f"{INDENT}oneof {oneof.name} {{"
            yield from _indented(_indented(lines))
            yield f"{INDENT}}}"
    yield "}"


def _oneof_of(field: FieldDescriptor) -> OneofDescriptor | None:
    """The oneof of a field; None for that of a field which is only optional."""
    oneof = field.containing_oneof
    is_only_optional = oneof is not None and len(oneof.fields) == 1 and oneof.name == f"_{field.name}"
    return None if is_only_optional else oneof


def _field_line(field: FieldDescriptor) -> str:
    option = " [(onelane.v1.key) = true]" if field.GetOptions().Extensions[options_pb2.key] else ""
    return f"{_label_of(field)}{type_of(field)} {field.name} = {field.number}{option};"


def _label_of(field: FieldDescriptor) -> str:
    if field.is_repeated:
        return "" if _is_map(field) else "repeated "
    if field.is_required:
        return "required "
    is_optional = field.has_presence and field.message_type is None and _oneof_of(field) is None
    return "optional " if is_optional else ""


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def type_of(field: FieldDescriptor) -> str:
    """The type of a field, or of an element of it, as a proto has it."""
    if field.message_type is not None:
        if _is_map(field):
            key, value = field.message_type.fields
            return f"map<{type_of(key)}, {type_of(value)}>"
        return str(field.message_type.full_name)
    return str(field.enum_type.full_name) if field.enum_type is not None else _SCALARS[field.type]
