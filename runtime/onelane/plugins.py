"""Plugins of this package and of others, found by their entry points."""

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from onelane.errors import BadService


def load_plugin(group: str, name: str) -> Callable[..., Any]:
    """Load the class that the entry point `name` of `group` refers to.

    group: onelane.listeners, onelane.memberships, or onelane.sinks.

    Raises:
        BadService: no plugin of that name is installed.
    """
    points = {point.name: point for point in entry_points(group=group)}
    if name not in points:
        raise BadService(f"{group}: {name!r} is not installed; installed are {sorted(points)}")
    plugin: Callable[..., Any] = points[name].load()
    return plugin
