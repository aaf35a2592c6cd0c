"""Descriptor pools from the protos of others, and the protos that this program has itself."""

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from onelane.errors import Invalid

_MODULES = (
    "onelane.v1.options_pb2",
    "google.rpc.error_details_pb2",
    "google.rpc.status_pb2",
    *(
        f"google.protobuf.{name}_pb2"
        for name in ("any", "descriptor", "duration", "empty", "field_mask", "struct", "timestamp", "wrappers")
    ),
)
"""Of protos that others import, or send, without describing them."""


def known_file(name: str) -> FileDescriptorProto | None:
    """The descriptor of a file that this program has itself."""
    return _of_default_pool(lambda pool: pool.FindFileByName(name))


def known_file_of(symbol: str) -> FileDescriptorProto | None:
    """The descriptor of the file with this symbol, where this program has it itself."""
    return _of_default_pool(lambda pool: pool.FindFileContainingSymbol(symbol))


def _of_default_pool(find: Any) -> FileDescriptorProto | None:
    for module in _MODULES:
        import_module(module)
    file = FileDescriptorProto()
    try:
        find(descriptor_pool.Default()).CopyToProto(file)
    except KeyError:
        return None
    return file


def fill(pool: Any, files: Mapping[str, FileDescriptorProto], added: set[str]) -> None:
    """Add files to a pool, each after those that it imports. added: those that it has, which is kept up to date.

    Raises:
        Invalid: they do not fit together, or one that is imported is not among them.
    """
    try:
        for name in TopologicalSorter({file.name: file.dependency for file in files.values()}).static_order():
            if name not in added:
                pool.Add(files[name])
                # An error of the file shows here, where its C implementation has not looked before.
                pool.FindFileByName(name)
                added.add(name)
    except (CycleError, TypeError, KeyError) as error:
        raise Invalid(f"its descriptors do not fit together: {error}") from error
