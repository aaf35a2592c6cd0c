"""The runner's messages, and its headers, whose binary values are base64."""

import base64
from collections.abc import Iterable
from typing import BinaryIO, TypeVar

from google.protobuf.message import Message

from tests.conformance.v1.service_pb2 import Header

_Kind = TypeVar("_Kind", bound=Message)
Value = str | bytes


def to_metadata(headers: Iterable[Header]) -> tuple[tuple[str, Value], ...]:
    return tuple(
        (header.name.lower(), _decoded(header.name.lower(), value)) for header in headers for value in header.value
    )


def _decoded(name: str, value: str) -> Value:
    return base64.b64decode(value + "=" * (-len(value) % 4)) if name.endswith("-bin") else value


def to_headers(metadata: Iterable[tuple[str, Value]]) -> list[Header]:
    headers: dict[str, Header] = {}
    for name, value in metadata:
        text = value if isinstance(value, str) else base64.b64encode(value).rstrip(b"=").decode()
        headers.setdefault(name, Header(name=name)).value.append(text)
    return list(headers.values())


def read_message(stream: BinaryIO, kind: type[_Kind]) -> _Kind | None:
    """The next message, each of which comes after its size in four bytes; None at the end."""
    size = stream.read(4)
    return kind.FromString(stream.read(int.from_bytes(size, "big"))) if size else None


def write_message(stream: BinaryIO, message: Message) -> None:
    data = message.SerializeToString()
    stream.write(len(data).to_bytes(4, "big") + data)
    stream.flush()
