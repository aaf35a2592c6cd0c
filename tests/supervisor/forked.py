"""A fork server whose processes obey orders on their first descriptor: `python -m tests.supervisor.forked FD`.

It is `onelane.shard.fork_server` without the imports of a shard, and without the shard.
"""

import os
import signal
import socket
import sys
from pathlib import Path

from onelane.shard import fork_server

CHANGED = "FORKED_CHANGED"
"""Variable: a file that has changed, once it is there."""
UNFIT = "FORKED_UNFIT"
"""Variable: why the server forks nothing."""


def changed() -> str:
    path = os.environ.get(CHANGED, "")
    return path if path and Path(path).exists() else ""


def obey(line: socket.socket) -> None:
    """Answer with the number of this process, then carry out orders."""
    line.sendall(b"%d\n" % os.getpid())
    for order in line.makefile():
        match order.split():
            case ["exit", code]:
                os._exit(int(code))
            case ["descriptors"]:
                line.sendall(b"%d\n" % len(os.listdir("/proc/self/fd")))
            case ["parent"]:
                line.sendall(b"%d\n" % os.getppid())


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    server_end = socket.socket(fileno=int(sys.argv[1]))
    if reason := os.environ.get(UNFIT):
        server_end.send(b'{"unfit": "%s"}' % reason.encode())
        sys.exit(0)
    server_end.send(b'{"ready": true}')
    if (descriptors := fork_server.serve(server_end, changed)) is not None:
        obey(socket.socket(fileno=descriptors[0]))
