"""The process of one shard: `python -m onelane.shard.process FD…`, started by the supervisor alone."""

import asyncio
import faulthandler
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from typing import Any, NoReturn

# Read by grpc when it is first imported.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
# Read by OpenTelemetry's API when it is first imported: onelane.telemetry.otel.context.LaneContext.
os.environ.setdefault("OTEL_PYTHON_CONTEXT", "onelane")

if __name__ == "__main__":
    # Before the first import of grpc and of protobuf.
    from onelane.server import deferred_core, deferred_protobuf

    deferred_core.install()
    deferred_protobuf.install()

import uvloop

from onelane.cluster.control import WireControl
from onelane.server import user_code
from onelane.shard import lifecycle
from onelane.shard.watchdog import Watchdog
from onelane.telemetry import logs
from onelane.telemetry.stalls import END_HUNG
from onelane.v1 import control_pb2

log = logging.getLogger("onelane.shard")


async def main(fd: int, *sockets: int) -> bool:
    # The supervisor alone decides when a shard ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.register(END_HUNG, chain=True)
    control = await WireControl.over(socket.socket(fileno=fd), control_pb2.ToShard, serves=False)
    loop = asyncio.get_running_loop()
    asks: set[asyncio.Task[None]] = set()

    def ask_restart() -> None:
        asks.add(loop.create_task(control.send(control_pb2.ToSupervisor(ask_restart=control_pb2.AskRestart()))))

    def drain_on_sigterm() -> None:
        # Before, SIGTERM ends the process: it has no call yet, and may stand still.
        loop.add_signal_handler(signal.SIGTERM, ask_restart)

    listening = [socket.socket(fileno=fd) for fd in sockets]
    return await lifecycle.run(control, Watchdog(may_exit=True), listening, on_ready=drain_on_sigterm)


def run(work: Coroutine[Any, Any, bool]) -> bool:
    """Run the loop until `work` ends, and its result.

    SystemExit and KeyboardInterrupt of any task or callback stop an asyncio loop; and a service may start tasks. The
    supervisor alone decides when a shard ends, so the loop goes on: whoever awaits that task gets the exception.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        loop = runner.get_loop()
        task = loop.create_task(work)
        while True:
            try:
                return loop.run_until_complete(task)
            except (SystemExit, KeyboardInterrupt) as error:
                if task.done():
                    raise
                log.error("shard.exit_ignored at=%s error=%s", user_code.line_of(error), user_code.summary(error))


def become(*descriptors: int) -> NoReturn:
    """Be a shard's process, to its end. descriptors: of the control line, and of the listening sockets."""
    logs.install(os.environ)
    sys.exit(0 if run(main(*descriptors)) else 1)


if __name__ == "__main__":
    become(*map(int, sys.argv[1:]))
