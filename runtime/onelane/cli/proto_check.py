"""`onelane proto --check`: faults of the keys that protos state, and changes of them since a revision.

A key is named by the numbers and types of its fields, since those are what its text is made of: a field may be renamed,
and int32 become int64. Any other change of a key routes the same request to another shard, and leaves its state behind.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import DecodeError

from onelane.cli.known_protos import fill, known_file
from onelane.cli.proto_text import type_of
from onelane.core.keys import AnyShard, FieldKey, KeyRule, annotated_paths, configured_for, proto_rule
from onelane.errors import BadService, Invalid
from onelane.v1 import options_pb2

_SERVICE, _METHOD, _MESSAGE, _FIELD, _NESTED = 6, 2, 4, 2, 3
"""Numbers of the fields of descriptors that lead to a method of a service, and to a field of a message."""
_WIDER = {("int32", "int64"), ("uint32", "uint64"), ("string", "bytes"), ("bytes", "string")}
"""Types of before and after whose values have the same text on the wire and as a key."""
NO_KEY = (
    "has no key; annotate a field of its request with [(onelane.v1.key) = true], or the method with option "
    "(onelane.v1.route) = ANY"
)
UNREAD = (
    "is annotated as a key that no method reads: it is in no request of a method with a key, or in a repeated field, "
    "or is a message"
)


@dataclass(frozen=True, slots=True)
class ProtoFault:
    """One fault of a proto, as `--json` prints it."""

    file: str
    line: int
    """0 where the proto does not say it: a descriptor file may have no lines."""
    symbol: str
    text: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.symbol}: {self.text}"


class ProtoFiles:
    """The descriptors of some protos and of all that they import."""

    def __init__(self, files: Iterable[FileDescriptorProto], names: Iterable[str] | None = None) -> None:
        """names: the files to check; by default all.

        Raises:
            Invalid: the descriptors do not fit together.
        """
        protos = {file.name: file for file in files}
        self.names = sorted(protos if names is None else names)
        for name in {imported for file in protos.values() for imported in file.dependency} - set(protos):
            if (known := known_file(name)) is None:
                raise Invalid(f"the file {name!r} is imported, and not there: build it with its imports")
            protos.update(_with_imports(known))
        self._protos = protos
        self._pool: Any = descriptor_pool.DescriptorPool()
        fill(self._pool, protos, set())

    def methods(self) -> Iterator[MethodDescriptor]:
        for name in self.names:
            for service in self._pool.FindFileByName(name).services_by_name.values():
                yield from service.methods

    def fields(self) -> Iterator[FieldDescriptor]:
        """The fields of all messages, nested ones too."""
        for name in self.names:
            for message in self._pool.FindFileByName(name).message_types_by_name.values():
                yield from _fields_of(message)

    def fault(self, descriptor: MethodDescriptor | FieldDescriptor, text: str) -> ProtoFault:
        if isinstance(descriptor, MethodDescriptor):
            owner: Any = descriptor.containing_service
            symbol = f"{owner.full_name}/{descriptor.name}"
        else:
            owner, symbol = descriptor.containing_type, descriptor.full_name
        lines = _lines_in(self._protos[owner.file.name])
        return ProtoFault(owner.file.name, lines.get(descriptor.full_name, 0), symbol, text)


def _with_imports(file: FileDescriptorProto) -> dict[str, FileDescriptorProto]:
    files = {file.name: file}
    for name in file.dependency:
        known = known_file(name)
        assert known is not None, name
        files |= _with_imports(known)
    return files


def _fields_of(message: Descriptor) -> Iterator[FieldDescriptor]:
    yield from message.fields
    for nested in message.nested_types:
        yield from _fields_of(nested)


def _lines_in(file: FileDescriptorProto) -> dict[str, int]:
    """The lines of all methods, and of the fields of all messages, by their full names."""
    lines = {tuple(location.path): location.span[0] + 1 for location in file.source_code_info.location}
    return {symbol: lines[place] for symbol, place in _places_in(file) if place in lines}


def _places_in(file: FileDescriptorProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Each with its path in the file, as `SourceCodeInfo` has it."""
    package = f"{file.package}." if file.package else ""
    for number, service in enumerate(file.service):
        for index, method in enumerate(service.method):
            yield f"{package}{service.name}.{method.name}", (_SERVICE, number, _METHOD, index)
    for number, message in enumerate(file.message_type):
        yield from _places_of_fields(message, package, (_MESSAGE, number))


def _places_of_fields(
    message: DescriptorProto, prefix: str, place: tuple[int, ...]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    name = f"{prefix}{message.name}."
    for index, field in enumerate(message.field):
        yield name + field.name, (*place, _FIELD, index)
    for index, nested in enumerate(message.nested_type):
        yield from _places_of_fields(nested, name, (*place, _NESTED, index))


def faults_in(files: ProtoFiles, configured: Mapping[str, str]) -> list[ProtoFault]:
    """Methods without a key, and keys that are none. configured: the keys of the settings file, by method."""
    faults: list[ProtoFault] = []
    read: set[str] = set()
    for method in files.methods():
        if not isinstance(_rule_of(method), AnyShard):
            read |= {_field_at(method.input_type, path).full_name for path in annotated_paths(method.input_type)}
        name = f"/{method.containing_service.full_name}/{method.name}"
        if configured_for(name, configured) is None and (text := _fault_of(method)):
            faults.append(files.fault(method, text))
    unread = [field for field in files.fields() if _is_annotated(field) and field.full_name not in read]
    return faults + [files.fault(field, UNREAD) for field in unread]


def _is_annotated(field: FieldDescriptor) -> bool:
    return bool(field.GetOptions().Extensions[options_pb2.key])


def _fault_of(method: MethodDescriptor) -> str:
    try:
        rule = proto_rule(method)
    except BadService as error:
        return str(error)
    return NO_KEY if rule is None else ""


def changes_between(before: ProtoFiles, after: ProtoFiles, configured: Mapping[str, str]) -> list[ProtoFault]:
    """Methods whose key is another one than it was. Those that are new, or gone, have no key that could change."""
    old = {method.full_name: method for method in before.methods()}
    faults = []
    for method in after.methods():
        name = f"/{method.containing_service.full_name}/{method.name}"
        if method.full_name not in old or configured_for(name, configured) is not None:
            continue
        if text := _change(old[method.full_name], method):
            faults.append(after.fault(method, text))
    return faults


def _change(before: MethodDescriptor, after: MethodDescriptor) -> str:
    old, new = _rule_of(before), _rule_of(after)
    if not isinstance(old, FieldKey):
        # Its calls went to any shard, or the method could not be served at all.
        is_keyed_now = isinstance(old, AnyShard) and isinstance(new, FieldKey)
        return f"its calls had no key, and now need {_words(after, new)}" if is_keyed_now else ""
    if not isinstance(new, FieldKey):
        return f"its key was {_words(before, old)}, and it has none now"
    if _is_same(_parts(before, old), _parts(after, new)):
        return ""
    return f"its key was {_words(before, old)}, and is {_words(after, new)}: calls do not go where their state is"


def _rule_of(method: MethodDescriptor) -> KeyRule | None:
    try:
        return proto_rule(method)
    except BadService:
        return None


Part = tuple[tuple[int, ...], str]
"""A field of a key: the numbers of the fields that lead to it, and its type."""


def _parts(method: MethodDescriptor, rule: FieldKey) -> list[Part]:
    return [_part(method.input_type, path) for path in rule.paths]


def _part(message: Descriptor, path: str) -> Part:
    numbers: list[int] = []
    *parents, last = path.split(".")
    for parent in parents:
        field = message.fields_by_name[parent]
        numbers.append(field.number)
        assert field.message_type is not None
        message = field.message_type
    field = message.fields_by_name[last]
    return (*numbers, field.number), "enum" if field.enum_type is not None else type_of(field)


def _field_at(message: Descriptor, path: str) -> FieldDescriptor:
    *parents, last = path.split(".")
    for parent in parents:
        nested = message.fields_by_name[parent].message_type
        assert nested is not None
        message = nested
    return message.fields_by_name[last]


def _is_same(before: Sequence[Part], after: Sequence[Part]) -> bool:
    def fits(old: Part, new: Part) -> bool:
        types = old[1], new[1]
        is_number_now = types[0] == "enum" and types[1] in ("int32", "int64")
        return old[0] == new[0] and (types[0] == types[1] or types in _WIDER or is_number_now)

    return len(before) == len(after) and all(map(fits, before, after))


def _words(method: MethodDescriptor, rule: KeyRule | None) -> str:
    assert isinstance(rule, FieldKey)
    fields = [(path, _field_at(method.input_type, path)) for path in rule.paths]
    return ", ".join(f"{path} ({type_of(field)} {field.number})" for path, field in fields)


def descriptor_file(path: Path) -> ProtoFiles:
    """What protoc's --descriptor_set_out, or `buf build -o`, has written.

    Raises:
        Invalid: it cannot be read, or is something else.
    """
    try:
        files = FileDescriptorSet.FromString(path.read_bytes()).file
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise Invalid(f"{path} is no descriptor file: {error}") from error
    if not files:
        raise Invalid(f"{path} is no descriptor file: it describes no proto")
    return ProtoFiles(files)
