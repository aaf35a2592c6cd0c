"""Plugs: what other packages bring, found by name through entry points."""

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from onelane.errors import BadService


def plug(group: str, name: str) -> Callable[..., Any]:
    """What the entry point `name` of `group` names, loaded now.

    group: onelane.listeners, onelane.memberships, or onelane.sinks.

    Raises:
        BadService: nothing of that name is installed.
    """
    found = {point.name: point for point in entry_points(group=group)}
    if name not in found:
        raise BadService(f"{group}: {name!r} is not installed; there are {sorted(found)}")
    made: Callable[..., Any] = found[name].load()
    return made
