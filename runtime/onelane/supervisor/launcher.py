"""Starts shards: each as a process of its own, or (inline.py) as a task of this one.

A process inherits one end of a socket pair and its listening sockets, and no grpc object. It is a fork of a server that
has nothing but its imports (`forks`), or a fresh interpreter.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

import anyio

from onelane.cluster.control import Control, WireControl
from onelane.supervisor.descriptors import DescriptorReserve
from onelane.supervisor.forks import ForkServer, NotForked
from onelane.supervisor.orphan_guard import OrphanGuard
from onelane.telemetry.stalls import END_HUNG, EXIT_STALLED, MAIN_CAUSE
from onelane.v1 import control_pb2

log = logging.getLogger("onelane.supervisor")


class RunningShard(Protocol):
    """A shard that has been launched."""

    control: Control

    async def wait(self) -> str:
        """Wait for its end; returns how it ended, for logs ("exit code 1", "signal SIGKILL")."""

    def kill(self) -> None:
        """End it at once."""

    def lacks_cpu(self) -> bool:
        """Whether its lane got no CPU since it was asked before: stopped, by SIGSTOP or a debugger, or starved."""

    def end_hung(self) -> None:
        """End its process, whose lane keeps the interpreter, once the stacks of all its threads are written; asked
        again, at once."""


class Launcher(Protocol):
    """Starts shards. Promised: `kill` ends a shard even if its lane is stalled (inline: at its next await)."""

    async def launch(self, sockets: Sequence[socket.socket]) -> RunningShard:
        """Start a shard, which waits for its setup on the control line. sockets: it listens on copies of these.

        Raises:
            OSError: the system starts no process now: no program, descriptor, process or memory is left. Nothing of
                the attempt stays behind.
        """


class ProcessLauncher:
    """See `Launcher`: one process for each shard, in a session of its own: Ctrl-C reaches the supervisor alone."""

    def __init__(
        self,
        module: str = "onelane.shard.process",
        *,
        stdout: int | None = None,
        orphan_guard: OrphanGuard | None = None,
        fork_server: ForkServer | None = None,
    ) -> None:
        """module: what a process runs. stdout: its standard output, by default that of this process.
        orphan_guard: ends processes that outlive this one. fork_server: starts processes instead of this one."""
        self._module = module
        self._orphan_guard = orphan_guard
        self._fork_server = fork_server
        self._stdout = stdout
        self._lock = anyio.Lock()
        self._reserve = DescriptorReserve()

    async def launch(self, sockets: Sequence[socket.socket]) -> RunningShard:
        async with self._lock:
            with self._reserve.released():
                if self._fork_server is not None:
                    with contextlib.suppress(NotForked):
                        return await self._launch(self._fork_server.start, sockets)
                return await self._launch(self._start_interpreter, sockets)

    async def _launch(self, start: "_Start", sockets: Sequence[socket.socket]) -> RunningShard:
        own_end, shard_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(own_end.close)
            with shard_end:
                process = await start([shard_end.fileno(), *(sock.fileno() for sock in sockets)])
            on_failure.callback(_kill, process)
            self._guard(process.pid)
            control = await WireControl.over(own_end, control_pb2.ToSupervisor, serves=True)
            on_failure.pop_all()
        return _ShardProcess(control, process)

    def _guard(self, pid: int) -> None:
        if self._orphan_guard is not None:
            try:
                self._orphan_guard.watch(pid)
            except OSError as error:
                log.warning("supervisor.no_orphan_guard pid=%d error=%s", pid, error)

    async def _start_interpreter(self, fds: Sequence[int]) -> "_Process":
        try:
            return await anyio.open_process(
                [sys.executable, "-m", self._module, *map(str, fds)],
                stdin=None,
                stdout=self._stdout,
                stderr=None,
                start_new_session=True,
                pass_fds=fds,
                env=os.environ | {"GRPC_ENABLE_FORK_SUPPORT": "0"},
            )
        except OSError as error:
            # The loop does not name the program.
            raise OSError(error.errno, error.strerror, sys.executable) from error


class _Process(Protocol):
    """A process that has been started: `anyio.abc.Process`, or one that was forked."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    async def wait(self) -> int | None: ...

    def kill(self) -> None: ...

    def send_signal(self, number: signal.Signals, /) -> None: ...


_Start = Callable[[Sequence[int]], Awaitable[_Process]]
"""Starts a process that has these descriptors."""


class _ShardProcess:
    def __init__(self, control: Control, process: _Process) -> None:
        self.control = control
        self._process = process
        self._is_hung = False
        self._delay = (time.monotonic(), 0.0)
        """When it was last measured, and how long the lane has waited for a CPU in all, in seconds."""

    async def wait(self) -> str:
        code = await self._process.wait()
        if code is None:
            return "its exit code is not known: the process that had started it ended first"
        if code == -END_HUNG and self._is_hung:
            return f"its lane kept the interpreter for twice replace_stalled_s (signal {END_HUNG.name})"
        if code == EXIT_STALLED:
            return f"its lane stood still for replace_stalled_s, so it ended itself (exit code {code})"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        _kill(self._process)

    def lacks_cpu(self) -> bool:
        # Of the main thread, which is the lane.
        process = Path(f"/proc/{self._process.pid}")
        try:
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
            delay_s = int((process / "schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError):
            return False
        (before_at, before_s), self._delay = self._delay, (time.monotonic(), delay_s)
        return state in "Tt" or delay_s - before_s > MAIN_CAUSE * (self._delay[0] - before_at)

    def end_hung(self) -> None:
        if self._is_hung:
            self.kill()
            return
        self._is_hung = True
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(END_HUNG)


def _kill(process: _Process) -> None:
    # It may have ended although its exit code has not been read yet.
    with contextlib.suppress(ProcessLookupError):
        if process.returncode is None:
            process.kill()
