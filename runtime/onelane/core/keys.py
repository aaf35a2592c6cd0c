"""The key of a call: where it is in the request or metadata, and its canonical text.

The canonical text is hashed, and carried by the metadata `onelane-key`: UTF-8 of a string, bytes as they are, decimal
of an integer or enum; each byte outside 0x21-0x7E, `%` and `/` percent-encoded; parts of a composite joined by `/`.

Promises: a rule is compiled once from descriptors; reading a key costs under 1 µs for a small message; no key is longer
than the rule allows, and a longer one costs no more than that.
Leaves out: parsing. The caller passes a parsed message and the metadata of the call.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from onelane.errors import BadKey, BadService, LongKey, Misuse
from onelane.v1 import options_pb2

HEADER = "onelane-key"
"""The metadata that carries a key's canonical text."""

MAX_KEY_BYTES = 1024
"""The default limit on the canonical text of a key."""

KeyPart = str | bytes | int
RoutingKey = KeyPart | tuple[KeyPart, ...]
"""A key as the code of a service names it; one of several fields is a tuple, in the order of the rule."""

_SAFE = bytes(set(range(0x21, 0x7F)) - set(b"%/"))
_is_odd: Final = re.compile(r"[^\x21-\x24\x26-\x2e\x30-\x7e]").search
"""Finds what makes a text differ from its canonical text."""

_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
    FieldDescriptor.CPPTYPE_ENUM,
}


def canonical(value: RoutingKey) -> str:
    """The canonical text of a key, or of one part of it."""
    if isinstance(value, str):
        return value if _is_odd(value) is None else quote_from_bytes(value.encode(), safe=_SAFE)
    if isinstance(value, bytes):
        return quote_from_bytes(value, safe=_SAFE)
    if isinstance(value, tuple):
        return "/".join(map(canonical, value))
    return str(int(value))


def named(text: str) -> RoutingKey:
    """A key with this canonical text."""
    parts = tuple(map(unquote_to_bytes, text.split("/")))
    return parts if len(parts) > 1 else parts[0]


def composite(parts: tuple[Any, ...]) -> str | None:
    """The canonical text of a key of several fields; None where it is none.

    Raises:
        ValueError: a text is no Unicode, or an integer has thousands of digits.
    """
    is_key = len(parts) > 1 and all(isinstance(part, str | bytes | int) for part in parts)
    return canonical(parts) if is_key else None


def bounded(value: RoutingKey, source: str, limit: int) -> str:
    """The canonical text of a key of at most `limit` bytes. source: where it is, for the error.

    Raises:
        LongKey: it is longer. Misuse: it is a tuple, and no key of several fields.
    """
    if isinstance(value, tuple):
        return _bounded_composite(value, source, limit)
    # Before it is made canonical too: that would cost a long one its length threefold.
    if isinstance(value, int) or len(value) <= limit:
        text = canonical(value)
        if len(text) <= limit:
            return text
    raise LongKey(source, limit=limit)


def _bounded_composite(parts: tuple[Any, ...], source: str, limit: int) -> str:
    if sum(len(part) for part in parts if isinstance(part, str | bytes)) > limit:
        raise LongKey(source, limit=limit)
    text = composite(parts)
    if text is None:
        raise Misuse(f"{source} is {parts!r}: one of several fields is a tuple of two or more str, bytes or int")
    if len(text) > limit:
        raise LongKey(source, limit=limit)
    return text


@dataclass(frozen=True, slots=True)
class FieldKey:
    """The key is in the message: one field, or several that make a composite."""

    paths: tuple[str, ...]
    """Dotted, in field-number order."""
    read: Callable[[Any], str]
    """Reads the canonical text of a parsed message; raises BadKey, which names the field."""
    limit: int = MAX_KEY_BYTES
    """Bytes of the canonical text, at most."""


@dataclass(frozen=True, slots=True)
class MetadataKey:
    """The key is the value of one name in the metadata."""

    name: str
    limit: int = MAX_KEY_BYTES
    """As of `FieldKey`."""


@dataclass(frozen=True, slots=True)
class AnyShard:
    """The method has no key; any shard serves its calls."""


KeyRule = FieldKey | MetadataKey | AnyShard
ANY = AnyShard()


def proto_rule(method: MethodDescriptor, limit: int = MAX_KEY_BYTES) -> KeyRule | None:
    """The rule in a method's proto; None if there is none. limit: bytes of a key.

    Raises:
        BadService: an annotated field cannot be a key.
    """
    paths = annotated_paths(method.input_type)
    if method.GetOptions().Extensions[options_pb2.route] == options_pb2.ANY:
        return ANY
    return field_key(method.input_type, paths, limit) if paths else None


def configured_rule(text: str, method: MethodDescriptor | None, limit: int = MAX_KEY_BYTES) -> KeyRule:
    """The rule of a configured text: `field.path`, `a.b,c.d`, `metadata:name` or `ANY`. limit: bytes of a key.

    Raises:
        BadService: there is no such field, or it cannot be a key.
    """
    if text == "ANY":
        return ANY
    if text.startswith("metadata:"):
        name = text.removeprefix("metadata:")
        if not re.fullmatch(r"[a-z0-9_.-]+", name) or name.endswith("-bin"):
            raise BadService(f"metadata:{name}: expected a lower-case name that does not end in -bin")
        return MetadataKey(name, limit)
    if method is None:
        raise BadService(f"{text}: the method's descriptor is unknown, so only metadata:name or ANY can be used")
    return field_key(method.input_type, text.split(","), limit)


def annotated_paths(message: Descriptor) -> tuple[str, ...]:
    """Dotted paths of the fields annotated `(onelane.v1.key)`, nested ones too, in field-number order."""
    return tuple(_walk(message, "", ()))


def _walk(message: Descriptor, prefix: str, above: tuple[Descriptor, ...]) -> Iterator[str]:
    for field in sorted(message.fields, key=lambda f: f.number):
        path = prefix + field.name
        nested = field.message_type
        if field.GetOptions().Extensions[options_pb2.key] and nested is None:
            yield path
        elif nested is not None and not field.is_repeated and nested not in above and nested is not message:
            yield from _walk(nested, f"{path}.", (*above, message))


def field_key(message: Descriptor, paths: Sequence[str], limit: int = MAX_KEY_BYTES) -> FieldKey:
    """Compile the reader of a key made of `paths`, of at most `limit` bytes.

    Raises:
        BadService: there is no field at a path, or it cannot be a key.
    """
    readers = [_reader(message, path, limit) for path in paths]
    if len(readers) == 1:
        return FieldKey(tuple(paths), readers[0], limit)
    source = f"the key {message.full_name}.{{{','.join(paths)}}}"

    def read_composite(request: Any) -> str:
        key = "/".join([read(request) for read in readers])
        if len(key) > limit:
            raise LongKey(source, limit=limit)
        return key

    return FieldKey(tuple(paths), read_composite, limit)


def _reader(message: Descriptor, path: str, limit: int) -> Callable[[Any], str]:
    *parents, last = _fields(message, path)
    names = [field.name for field in parents]
    full_name = f"{message.full_name}.{path}"
    if last.message_type is not None or last.is_repeated:
        raise BadService(f"{full_name}: a key is a single string, bytes, integer or enum")
    if last.cpp_type not in _INTEGERS and last.cpp_type != FieldDescriptor.CPPTYPE_STRING:
        raise BadService(f"{full_name}: a key is a string, bytes, integer or enum, not a float or bool")
    if last.cpp_type in _INTEGERS:
        read = _read_integer(last.name, full_name, optional=last.has_presence)
    else:
        read = _read_text(last.name, full_name, limit)
    if not names:
        return read

    def read_nested(request: Any) -> str:
        for name in names:
            if not request.HasField(name):
                raise BadKey(f"{full_name} is missing: it is the key of this call")
            request = getattr(request, name)
        return read(request)

    return read_nested


def _fields(message: Descriptor, path: str) -> list[FieldDescriptor]:
    fields: list[FieldDescriptor] = []
    level: Descriptor | None = message
    for name in path.split("."):
        field = level.fields_by_name.get(name) if level is not None else None
        if field is None:
            raise BadService(f"{message.full_name} has no field {path!r}")
        fields.append(field)
        level = field.message_type
    if any(field.is_repeated for field in fields):
        raise BadService(f"{message.full_name}.{path}: a key cannot lie in a repeated field")
    return fields


def _read_text(name: str, full_name: str, limit: int) -> Callable[[Any], str]:
    def read(request: Any) -> str:
        value = getattr(request, name)
        if not value:
            raise BadKey(f"{full_name} is empty: it is the key of this call")
        # Its length first: however long a key is, no more than `limit` is looked at.
        if isinstance(value, str) and len(value) <= limit and _is_odd(value) is None:
            return value
        return bounded(value, full_name, limit)

    return read


def _read_integer(name: str, full_name: str, *, optional: bool) -> Callable[[Any], str]:
    def read(request: Any) -> str:
        return str(getattr(request, name))

    def read_optional(request: Any) -> str:
        if not request.HasField(name):
            raise BadKey(f"{full_name} is missing: it is the key of this call")
        return str(getattr(request, name))

    return read_optional if optional else read


def header_of(metadata: Iterable[Any], name: str = HEADER) -> str | None:
    """The value of one name in the metadata; several values are joined by commas, as gRPC hashes them.

    metadata: pairs. What else than text and bytes is in them is refused where the call is sent.
    """
    values = [pair[1] for pair in metadata if pair[0] == name]
    if not values:
        return None
    return ",".join([v.decode("latin-1") if isinstance(v, bytes) else str(v) for v in values])


def key_in(rule: KeyRule, message: Message | None, metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The canonical key of one call; `message` is None for a stream that is routed before its first message.

    Raises:
        BadKey: the key is missing or empty, or the metadata and the message have different keys.
    """
    header = header_of(metadata)
    if isinstance(rule, FieldKey) and message is not None:
        return check_header(rule.read(message), header, rule.paths[0])
    if isinstance(rule, MetadataKey) and rule.name != HEADER:
        value = header_of(metadata, rule.name)
        if not value:
            raise BadKey(f"metadata {rule.name} is missing or empty: it is the key of this call")
        return check_header(bounded(value, f"metadata {rule.name}", rule.limit), header, f"metadata {rule.name}")
    if not header:
        raise BadKey(f"metadata {HEADER} is missing or empty: it is the key of this call")
    if not isinstance(rule, AnyShard) and len(header) > rule.limit:
        raise LongKey(f"metadata {HEADER}", limit=rule.limit)
    return header


def check_header(key: str, header: str | None, source: str) -> str:
    """`key`, once it is compared with the key in the metadata (`header`; None without one).

    Raises:
        BadKey: the two differ.
    """
    if header is not None and header != key:
        raise BadKey(f"metadata {HEADER} is {header!r}, but {source} makes the key {key!r}")
    return key


def describe(path: str) -> MethodDescriptor | None:
    """The descriptor of `/pkg.Service/Method`; None if its proto has not been imported."""
    try:
        return descriptor_pool.Default().FindMethodByName(path[1:].replace("/", "."))
    except KeyError:
        return None


def rule_for(
    path: str, descriptor: MethodDescriptor | None, configured: Mapping[str, str], limit: int = MAX_KEY_BYTES
) -> KeyRule | None:
    """The key rule of a method: from the configuration, else ANY for services of gRPC itself, else from its proto.
    limit: bytes of a key.

    Raises:
        BadService: there is no field of that name, or it cannot be a key.
    """
    service, _, _ = path[1:].rpartition("/")
    text = configured_for(path, configured)
    if text is not None:
        return configured_rule(text, descriptor, limit)
    if service.startswith("grpc."):
        return ANY
    return proto_rule(descriptor, limit) if descriptor is not None else None


def configured_for(path: str, configured: Mapping[str, str]) -> str | None:
    """The configured value for one method: by its own name, else by `pkg.Service/*`."""
    return configured.get(path[1:]) or configured.get(f"{path[1:].rpartition('/')[0]}/*")
