"""The services' own settings, `[apps.NAME.config]`: one typed, frozen object, and the differences between two of them.

Promises: settings that do not fit their type never become an object, and every fault is reported by its name.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from onelane.core import redaction


class Settings(Mapping[str, Any]):
    """Settings of an app without `config_type`: an immutable mapping whose values are attributes as well."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_values", {name: _frozen(value) for name, value in values.items()})

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"config has no {name!r}; it has {sorted(self._values)}") from None

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"config.{name} cannot be set: change the file, and reload it")

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Settings({self._values!r})"


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Settings(value)
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def build_settings(kind: str | None, values: Mapping[str, Any], *, app: str) -> Any:
    """The settings object of an app. kind: "package.module:Class" of a frozen dataclass or pydantic model, or None.

    Raises:
        BadConfig: there is no such class, it is not frozen, or the values do not fit; all faults at once.
    """
    if kind is None:
        return Settings(values)
    # Here: it imports pydantic.
    from onelane.shard.typed_settings import typed_settings

    return typed_settings(kind, values, app=app)


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The settings that differ, by dotted name. Texts are not shown, nor numbers whose names look like secrets."""
    changes: list[str] = []
    for name in sorted({*old, *new}):
        before, after, place = old.get(name), new.get(name), f"{prefix}{name}"
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes += differences(before, after, f"{place}.")
        elif name not in new:
            changes.append(f"{place}: removed")
        elif _is_number(before) and _is_number(after) and not redaction.looks_secret(place.split(".")):
            changes.append(f"{place}: {before} → {after}")
        else:
            changes.append(f"{place}: {'changed' if name in old else 'new'}")
    return changes
