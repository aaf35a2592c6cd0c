"""The process of one shard: `python -m onelane.shard.process FD…`, started by the supervisor alone."""

import os
import signal
import socket
import sys

# Read by grpc when it is first imported.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
# Read by OpenTelemetry's API when it is first imported: onelane.telemetry.otel.context.LaneContext.
os.environ.setdefault("OTEL_PYTHON_CONTEXT", "onelane")

import uvloop

from onelane.cluster.control import WireControl
from onelane.shard import lifecycle
from onelane.shard.watchdog import Watchdog
from onelane.telemetry import logs
from onelane.v1 import control_pb2


async def main(fd: int, *sockets: int) -> bool:
    # The supervisor alone decides when a shard ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = await WireControl.over(socket.socket(fileno=fd), control_pb2.ToShard, serves=False)
    return await lifecycle.run(control, Watchdog(may_exit=True), [socket.socket(fileno=fd) for fd in sockets])


if __name__ == "__main__":
    logs.install(os.environ)
    sys.exit(0 if uvloop.run(main(*map(int, sys.argv[1:]))) else 1)
