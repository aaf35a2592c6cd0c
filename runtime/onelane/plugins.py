"""Code that the file names: plugins, found by their entry points, and modules of the services."""

import importlib
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points
from types import ModuleType
from typing import Any

from onelane.errors import BadService, OnelaneError, ServiceRaised, caused, first_of


def load_plugin(group: str, name: str) -> Callable[..., Any]:
    """Load the class that the entry point `name` of `group` refers to.

    group: onelane.listeners, onelane.memberships, onelane.sinks, or onelane.stores.

    Raises:
        BadService: no plugin of that name is installed.
        ServiceRaised: its module has raised.
    """
    point = _own_point(group, name) or _installed_point(group, name)
    try:
        plugin: Callable[..., Any] = point.load()
    except (Exception, SystemExit) as error:
        raise raised(f"{group}: {name!r}", error) from error
    return plugin


def _own_point(group: str, name: str) -> EntryPoint | None:
    """Of this package, which nearly every shard asks for: to read those of all packages takes 10 ms."""
    try:
        own = distribution("onelane").entry_points
    except PackageNotFoundError:
        return None
    return next(iter(own.select(group=group, name=name)), None)


def _installed_point(group: str, name: str) -> EntryPoint:
    """Of any package. Raises BadService: there is none."""
    points = {point.name: point for point in entry_points(group=group)}
    if name not in points:
        raise BadService(f"{group}: {name!r} is not installed; installed are {sorted(points)}")
    return points[name]


def make_plugin(group: str, name: str, *arguments: Any) -> Any:
    """An object of the class that `load_plugin` loads. Raises as that, also for what its constructor raises."""
    plugin = load_plugin(group, name)
    try:
        return plugin(*arguments)
    except OnelaneError:
        raise
    except (Exception, SystemExit) as error:
        raise raised(f"{group}: {name!r}", error) from error


def import_plug(plug: str) -> ModuleType:
    """The module of `package.module:name`.

    Raises:
        BadService: there is no such module.
        ServiceRaised: the module has raised.
    """
    try:
        return importlib.import_module(plug.partition(":")[0])
    except ModuleNotFoundError as error:
        raise BadService(f"{plug}: no module {error.name!r} (looked from {sys.path[0] or 'here'})") from error
    except (Exception, SystemExit) as error:
        raise raised(plug, error) from error


def raised(place: str, error: BaseException) -> ServiceRaised:
    """The error for what the code of a service has raised. place: where the file names that code; or "".

    A SyntaxError's location precedes its name, indented; notes follow it.
    """
    cause = first_of(error) if isinstance(error, BaseExceptionGroup) else error
    name = next(line for line in traceback.format_exception_only(cause) if not line.startswith(" ")).rstrip()
    return caused(ServiceRaised(f"{place}: {name}" if place else name), error)
