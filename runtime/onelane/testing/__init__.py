"""What ships for tests of services and plugs.

`Cluster`: an app in this process, without ports. `ManualClock`: time that is moved by hand. The fixture
`onelane_cluster` gives the first to pytest.
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
