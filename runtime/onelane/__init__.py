"""onelane: gRPC services on one single-threaded lane per core.

Importing this package starts nothing and does not load grpcio; names that need grpcio load it at first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from onelane.errors import BadConfig, BadKey, BadService, Invalid, OnelaneError, Overloaded, PortTaken, Transient

if TYPE_CHECKING:
    from onelane.cli.script import RunningServices, run
    from onelane.client.channel import dial
    from onelane.client.options import Dialling
    from onelane.client.ring_channel import Channel, connect
    from onelane.client.tls import client_context
    from onelane.core.identity import Identity, identity_of
    from onelane.core.moved import Moved
    from onelane.shard.offload.offload import Offload
    from onelane.shard.pubsub import Subscription
    from onelane.shard.shard import Shard
    from onelane.shard.siblings import Answer
    from onelane.shard.topics import Lost
    from onelane.state.reminder import Reminder

__version__: str
"""Of the installed package. Read from its metadata at each use."""

__all__ = [
    "Answer",
    "BadConfig",
    "BadKey",
    "BadService",
    "Channel",
    "Dialling",
    "Identity",
    "Invalid",
    "Lost",
    "Moved",
    "Offload",
    "OnelaneError",
    "Overloaded",
    "PortTaken",
    "Reminder",
    "RunningServices",
    "Shard",
    "Subscription",
    "Transient",
    "client_context",
    "connect",
    "dial",
    "identity_of",
    "run",
]

_HOMES = {
    "Answer": "shard.siblings",
    "Channel": "client.ring_channel",
    "Dialling": "client.options",
    "Identity": "core.identity",
    "Lost": "shard.topics",
    "Moved": "core.moved",
    "Offload": "shard.offload.offload",
    "Reminder": "state.reminder",
    "RunningServices": "cli.script",
    "Shard": "shard.shard",
    "Subscription": "shard.pubsub",
    "client_context": "client.tls",
    "connect": "client.ring_channel",
    "dial": "client.channel",
    "identity_of": "core.identity",
    "run": "cli.script",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("onelane")
    if name not in _HOMES:
        raise AttributeError(f"module 'onelane' has no attribute {name!r}")
    return getattr(import_module(f"onelane.{_HOMES[name]}"), name)
