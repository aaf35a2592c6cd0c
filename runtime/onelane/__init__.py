"""onelane: gRPC services on one single-threaded lane per core.

Importing this package starts nothing and loads no grpcio; `connect`, `Shard` and `Channel` load it when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from onelane.errors import BadConfig, BadKey, BadService, Invalid, OnelaneError, Overloaded, PortTaken, Transient

if TYPE_CHECKING:
    from onelane.channel import Channel, connect
    from onelane.offload import Offload
    from onelane.shard import Shard

__all__ = [
    "BadConfig",
    "BadKey",
    "BadService",
    "Channel",
    "Invalid",
    "Offload",
    "OnelaneError",
    "Overloaded",
    "PortTaken",
    "Shard",
    "Transient",
    "connect",
]

_HOMES = {"Channel": "channel", "connect": "channel", "Offload": "offload", "Shard": "shard"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'onelane' has no attribute {name!r}")
    return getattr(import_module(f"onelane.{_HOMES[name]}"), name)
