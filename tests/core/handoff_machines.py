"""The real machines as immutable values, so that a state of a small app with them can be kept and compared."""

from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

from onelane.core.handoff import Handoff
from onelane.core.placement import Placement
from onelane.core.placement_change import Over, PlacementChange, Prepare


class Shared:
    """An unchangeable value that stands for all its equals: hashed and compared by identity."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


@dataclass
class Machines:
    """The real machines, as immutable values: an event is applied to a copy, and every result is remembered."""

    handoff: type[Handoff] = Handoff
    change: type[PlacementChange] = PlacementChange
    checks_blame: bool = True
    """See `handoff_blame`; what is lost on its way shows there first."""
    _shared: dict[Any, Shared] = field(default_factory=dict)
    _steps: dict[Any, tuple[Shared, list[Any]]] = field(default_factory=dict)
    places: dict[Any, Any] = field(default_factory=dict)
    """For `handoff_world`: a question where a call goes → its answer."""

    def share(self, value: Any) -> Shared:
        return self._shared.setdefault(_frozen(value), Shared(value))

    def step(self, machine: Shared, event: str, *details: Any) -> tuple[Shared, list[Any]]:
        step = (machine, event, details)
        if step not in self._steps:
            changed = _copied(machine.value)
            actions = getattr(changed, event)(*details)
            self._steps[step] = self.share(changed), actions
        return self._steps[step]


def _frozen(value: Any) -> Any:
    """A hashable value that tells apart what differs."""
    match value:
        case Placement():
            return "placement", value.epoch, value.members
        case set() | frozenset():
            return frozenset(value)
        case dict():
            return tuple((name, _frozen(inner)) for name, inner in value.items())
        case Handoff() | PlacementChange():
            return type(value), _frozen(vars(value))
        case Prepare():
            return "prepare", _frozen(value.before), _frozen(value.after), value.dead
        case Over():
            return "over", _frozen(value.placement), value.leaving
    return tuple(_frozen(getattr(value, name)) for name in _fields(value)) or value


def _copied(value: Any) -> Any:
    match value:
        case set():
            return set(value)
        case dict():
            return {name: _copied(inner) for name, inner in value.items()}
        case Handoff() | PlacementChange():
            twin = copy(value)
            vars(twin).update(_copied(vars(value)))
            return twin
    changeable = {name: _copied(getattr(value, name)) for name in _fields(value)}
    return replace(value, **changeable) if changeable else value


def _fields(value: Any) -> tuple[str, ...]:
    """Of a dataclass that can be changed; nothing else has any here."""
    is_frozen = getattr(value, "__dataclass_params__", None) is None or value.__dataclass_params__.frozen
    return () if is_frozen else tuple(value.__dataclass_fields__)
