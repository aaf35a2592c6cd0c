"""Builds one shard and starts nothing, for `onelane check`: `python -m onelane.shard.trial FD`, of the check alone."""

import logging
import socket
import sys

from onelane.cluster.control import WireControl

# First: it sets what grpc and OpenTelemetry read when they are imported.
from onelane.shard import lifecycle, process
from onelane.v1 import control_pb2


async def main(fd: int) -> bool:
    control = await WireControl.over(socket.socket(fileno=fd), control_pb2.ToShard, serves=False)
    await lifecycle.try_out(control)
    # Until the check has read the answer.
    await control.receive()
    return True


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    sys.exit(0 if process.run(main(int(sys.argv[1]))) else 1)
