"""What a service says of one keyed dict, checked at start; and the dict's values as entries, by version.

Every value carries its codec's name and its version. An older one is lifted step by step as it is read; one of a newer
version, or of another codec, is refused by name.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import inf
from typing import Any

from onelane.errors import BadService, UnreadableValue, UnwritableValue
from onelane.state.codecs import Codec, Migration, ServiceCodec, codec_for
from onelane.state.entries import DictKey, KeyedEntry

MAX_VERSION = 2**32 - 1
"""Of the kind of a dict's values: `version` of siblings.proto has 32 bits."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """The arguments of `shard.keyed`: each is a field here, and an argument of `KeyedDicts.declare`."""

    name: str
    kind: Any
    moves: bool = True
    durable: bool = False
    idle_s: float | None = None
    max_resident: int | None = None
    codec: ServiceCodec | None = None
    """The service's own."""
    version: int = 1
    migrate: Mapping[int, Migration] = field(default_factory=dict)
    """Version → lifts a value of it to the next one."""
    strict: bool = False
    """Whether it is a `StrictDict`."""

    def __post_init__(self) -> None:
        if not _is_unicode(self.name):
            raise BadService(f"keyed {self.name!r}: expected a text as its name")
        if not isinstance(self.version, int) or not 1 <= self.version <= MAX_VERSION:
            raise BadService(
                f"keyed {self.name!r}: version={self.version!r}: expected an integer from 1 to {MAX_VERSION}"
            )
        if self.durable and not self.moves:
            raise BadService(f"keyed {self.name!r}: a durable dict moves; expected moves=True")
        if not self.durable and (self.idle_s is not None or self.max_resident is not None):
            raise BadService(
                f"keyed {self.name!r}: idle_s and max_resident are of durable dicts; expected durable=True"
            )
        if self.idle_s is not None and not 0 < self.idle_s < inf:
            raise BadService(f"keyed {self.name!r}: idle_s={self.idle_s!r}: expected seconds above 0")
        if self.max_resident is not None and self.max_resident < 1:
            raise BadService(f"keyed {self.name!r}: max_resident={self.max_resident!r}: expected 1 or more")
        for version, step in self.migrate.items():
            if not isinstance(version, int) or not 1 <= version < self.version:
                raise BadService(f"keyed {self.name!r}: migrate has {version!r}, but versions before are 1 to "
                                 f"{self.version - 1}")  # fmt: skip
            if not callable(step) or inspect.iscoroutinefunction(step):
                raise BadService(f"keyed {self.name!r}: migrate[{version}] is no plain function")

    def differences(self, other: "Declaration") -> list[str]:
        """The names of the arguments that differ."""
        return [part.name for part in fields(self) if getattr(self, part.name) != getattr(other, part.name)]


class ValueCodec:
    """Writes and reads the values of one declared dict."""

    def __init__(self, declaration: Declaration) -> None:
        """Raises BadService, by field, where the kind cannot be encoded."""
        self.declaration = declaration
        try:
            self.codec: Codec = codec_for(declaration.kind, declaration.codec)
        except BadService as error:
            raise BadService(f"keyed {declaration.name!r}: {error}") from error
        if not _is_unicode(self.codec.name):
            raise BadService(f"keyed {declaration.name!r}: the name of its codec, {self.codec.name!r}, is no text")

    def write(self, key: DictKey, value: Any) -> KeyedEntry:
        """The entry of a value, which reads back as it was.

        Raises:
            UnwritableValue: the value does not fit its kind; names the field.
        """
        data = self.encoded(key, value)
        return KeyedEntry(self.declaration.name, key, data, self.codec.name, self.declaration.version)

    def encoded(self, key: DictKey, value: Any) -> bytes:
        """As `write`, the value alone."""
        try:
            data = self.codec.encode(value)
            self.codec.check(value, data)
        except BaseException as error:  # Also the panic of an extension, which is no Exception.
            raise UnwritableValue(self.declaration.name, key, _described(error)) from error
        return data

    def read(self, entry: KeyedEntry) -> Any:
        """The value of an entry, lifted to this version.

        Raises:
            UnreadableValue: another codec wrote it, its version is newer, a step of `migrate` is missing or has raised,
                or it does not fit the kind; names the field.
        """
        if entry.codec != self.codec.name:
            raise self._unreadable(entry, f"written by codec {entry.codec!r}, but this release has {self.codec.name!r}")
        try:
            return self.codec.decode(self._lifted(entry))
        except UnreadableValue:
            raise
        except BaseException as error:
            raise self._unreadable(entry, _described(error)) from error

    def _lifted(self, entry: KeyedEntry) -> bytes:
        """The bytes of an entry in this version."""
        newest, migrate = self.declaration.version, self.declaration.migrate
        if entry.version == newest:
            return entry.value
        if not 1 <= entry.version < newest:
            raise self._unreadable(entry, f"of version {entry.version}, but this release knows versions up to {newest}")
        steps = [migrate.get(version) for version in range(entry.version, newest)]
        if None in steps:
            missing = entry.version + steps.index(None)
            raise self._unreadable(entry, f"of version {entry.version}, and migrate has no step from {missing}")
        return self.codec.lift(entry.value, [step for step in steps if step is not None])

    def _unreadable(self, entry: KeyedEntry, reason: str) -> UnreadableValue:
        return UnreadableValue(entry.dict, entry.key, reason)


def _described(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        # Its own text cannot be had.
        return type(error).__name__


def _is_unicode(text: object) -> bool:
    return isinstance(text, str) and text == text.encode(errors="replace").decode()
