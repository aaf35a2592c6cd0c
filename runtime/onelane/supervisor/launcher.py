"""How a shard comes to life: as a process of its own, or (inline.py) as a task in this one.

A process is a fresh interpreter: nothing is inherited but one end of a socket pair and the sockets it shall listen on,
so no grpc object is ever forked.
"""

import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Protocol

import anyio
import anyio.abc

from onelane.cluster.control import Control, WireControl
from onelane.telemetry.stalls import EXIT_STALLED
from onelane.v1 import control_pb2


class Running(Protocol):
    """A shard that has been started."""

    control: Control

    async def wait(self) -> str:
        """Wait for its end; how it ended, for people ("exit code 1", "signal SIGKILL")."""

    def kill(self) -> None:
        """End it at once."""


class Launcher(Protocol):
    """Starts shards. Promised: `kill` ends one whatever it does (inline: at its next await)."""

    async def launch(self, sockets: Sequence[socket.socket]) -> Running:
        """Start one shard, which waits for its setup on the control line, with copies of `sockets` to listen on."""


class ProcessLauncher:
    """See `Launcher`: one process for each shard, in a session of its own, so a terminal's Ctrl-C reaches only us."""

    async def launch(self, sockets: Sequence[socket.socket]) -> Running:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        fds = [theirs.fileno(), *(sock.fileno() for sock in sockets)]
        with theirs:
            process = await anyio.open_process(
                [sys.executable, "-m", "onelane.shard.process", *map(str, fds)],
                stdin=None,
                stdout=None,
                stderr=None,
                start_new_session=True,
                pass_fds=fds,
                env=os.environ | {"GRPC_ENABLE_FORK_SUPPORT": "0"},
            )
        return _ProcessRunning(await WireControl.over(ours, control_pb2.ToSupervisor, serves=True), process)


class _ProcessRunning:
    def __init__(self, control: Control, process: anyio.abc.Process) -> None:
        self.control = control
        self._process = process

    async def wait(self) -> str:
        code = await self._process.wait()
        if code == EXIT_STALLED:
            return f"its lane stood still for replace_stalled_s, so it ended itself (exit code {code})"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
