"""For tests of services and plugins.

`Cluster`: an app in the test's own process, without ports. `ManualClock`: a clock that a test moves. `onelane_cluster`:
a pytest fixture that returns `Cluster`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onelane.testing.clock import ManualClock
    from onelane.testing.cluster import Cluster

__all__ = ["Cluster", "ManualClock"]
_HOMES = {"Cluster": "cluster", "ManualClock": "clock"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'onelane.testing' has no attribute {name!r}")
    return getattr(import_module(f"onelane.testing.{_HOMES[name]}"), name)
