"""Builds one shard and starts nothing: for `onelane check`, `python -m onelane.shard.trial FD`, of the check alone; and
in the process of a command that needs the code of the services, `onelane state`."""

import logging
import socket
import sys
from collections.abc import Mapping
from typing import Any

from onelane.cluster.control import WireControl

# First: it sets what grpc and OpenTelemetry read when they are imported.
from onelane.shard import lifecycle, process
from onelane.shard.wiring import Environment
from onelane.state.declaration import ValueCodec
from onelane.v1 import control_pb2


class NoControl:
    """The control line of a shard that has no supervisor."""

    async def send(self, message: Any) -> None: ...

    async def receive(self) -> Any | None:
        return None

    def close(self) -> None: ...


async def durable_dicts(setup: control_pb2.Setup) -> Mapping[str, ValueCodec]:
    """The durable dicts that the services of an app declare, by name. Imports and makes the services in this process.

    Raises:
        BadConfig, BadService, ServiceRaised: the services cannot be made.
    """
    if setup.app_dir not in sys.path:
        sys.path.insert(0, setup.app_dir)
    trial = lifecycle.ShardLifecycle(setup, NoControl(), (), Environment(opens_resources=False))
    trial.load(whole_process=False)
    return trial.parts.shard.keyed_dicts.durable


async def main(fd: int) -> bool:
    control = await WireControl.over(socket.socket(fileno=fd), control_pb2.ToShard, serves=False)
    await lifecycle.try_out(control)
    # Until the check has read the answer.
    await control.receive()
    return True


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    sys.exit(0 if process.run(main(int(sys.argv[1]))) else 1)
