"""The process of the fork server, as it is started (`onelane.shard.fork_server`).

Imports nothing but the standard library: the command line starts the server before it imports what it needs itself, so
that both import at the same time.
"""

import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

SERVER = (sys.executable, "-m", "onelane.shard.fork_server")


@dataclass(frozen=True)
class ServerProcess:
    """The process, our end of its line, and the environment that it and all its shards have."""

    process: subprocess.Popen[bytes]
    line: socket.socket
    environment: Mapping[str, str]

    def kill(self) -> None:
        """End it, which has no shard yet."""
        self.line.close()
        self.process.kill()
        self.process.wait()


_early: list[ServerProcess] = []
"""The server that was started before its time, until it is taken over."""


def start(environment: Mapping[str, str]) -> ServerProcess:
    """Start a server.

    Raises:
        OSError: the system starts no process now.
    """
    line, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    line.setblocking(False)
    try:
        with server_end:
            process = subprocess.Popen(
                [*SERVER, str(server_end.fileno())],
                start_new_session=True,
                pass_fds=[server_end.fileno()],
                env={**environment, "GRPC_ENABLE_FORK_SUPPORT": "0"},
            )
    except BaseException:
        line.close()
        raise
    return ServerProcess(process, line, dict(environment))


def start_early(environment: Mapping[str, str]) -> None:
    """Start the server that `take_early` returns. Raises as `start`."""
    _early.append(start(environment))


def take_early() -> ServerProcess | None:
    """The server that was started early, once; None where there is none."""
    return _early.pop() if _early else None
