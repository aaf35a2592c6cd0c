"""`python -m onelane` in a fork of a process that has imported the command line: an app starts in half of the processor
time. What differs from a fresh process: its command line in `/proc`, and that its modules are imported already.

Run as `python -m tests.warm_command FD`, it is that process, which ends with the tests that have started it.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, TextIO

PRELOADED = (
    "onelane.cli.check",
    "onelane.cli.main",
    "onelane.cli.run_apps",
    "onelane.supervisor.admin.server",
    "onelane.supervisor.supervisor",
    "onelane.telemetry.sinks.prometheus",
)
"""What an app's process imports at its start, but for services and grpcio's core, which it may not import."""
MAX_PACKET = 1 << 17


class WarmCommand:
    """The started command, as `subprocess.Popen` has it."""

    def __init__(self, pid: int, line: socket.socket, stdout: TextIO, args: Sequence[str]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdout: IO[str] = stdout
        self.args = args
        # A descriptor: a socket that is destroyed with this object, in any order, tells that it was not closed.
        self._line = line.detach()

    def __del__(self) -> None:
        os.close(self._line)

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """May be called by several threads."""
        if self.returncode is None:
            if not select.select([self._line], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            with socket.fromfd(self._line, socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
                self.returncode = int(json.loads(line.recv(MAX_PACKET, socket.MSG_PEEK))["code"])
        return self.returncode

    def send_signal(self, number: int) -> None:
        # Its number is another's only once its end has been read.
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(arguments: Sequence[str], *, cwd: Path, stderr: IO[str], environment: Mapping[str, str]) -> WarmCommand:
    """`python -m onelane ARGUMENTS`."""
    line, command_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reading, writing = os.pipe()
    request = json.dumps({"arguments": list(arguments), "cwd": str(cwd), "environment": dict(environment)})
    try:
        # The end of the process comes on a line of its own: commands end in any order, and threads wait for them.
        descriptors = [writing, stderr.fileno(), command_end.fileno()]
        socket.send_fds(server().line, [request.encode()], descriptors)
    finally:
        os.close(writing)
        command_end.close()
    pid = json.loads(line.recv(MAX_PACKET))["pid"]
    return WarmCommand(pid, line, io.TextIOWrapper(io.FileIO(reading)), ["onelane", *arguments])


class Server(NamedTuple):
    """The process that forks, and our end of the line to it: it ends with the line."""

    process: subprocess.Popen[bytes]
    line: socket.socket

    def close(self) -> None:
        self.line.close()
        self.process.wait()


@functools.cache
def server() -> Server:
    line, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", __name__, str(server_end.fileno())]
    with server_end:
        process = subprocess.Popen(command, pass_fds=[server_end.fileno()], cwd=Path(__file__).parent.parent)
    started = Server(process, line)
    atexit.register(started.close)
    return started


def serve(line: socket.socket) -> dict[str, Any] | None:
    """Fork for each request, and report the ends; returns the request in a fork, None once the tests are over."""
    commands: dict[int, tuple[int, socket.socket]] = {}
    """Descriptor of the process → its number, and the line on which its end is told."""
    while True:
        for descriptor in _wait_ready(line.fileno(), *commands):
            if descriptor != line.fileno():
                pid, end_line = commands.pop(descriptor)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                os.close(descriptor)
                # Whoever has started it may be gone.
                with end_line, contextlib.suppress(OSError):
                    end_line.send(json.dumps({"code": code}).encode())
                continue
            packet, received, _, _ = socket.recv_fds(line, MAX_PACKET, 3)
            if not packet:
                return None
            stdout, stderr, line_descriptor = received
            if (pid := os.fork()) == 0:
                os.dup2(stdout, 1)
                os.dup2(stderr, 2)
                request: dict[str, Any] = json.loads(packet)
                return request
            end_line = socket.socket(fileno=line_descriptor)
            end_line.send(json.dumps({"pid": pid}).encode())
            commands[os.pidfd_open(pid)] = pid, end_line
            os.close(stdout)
            os.close(stderr)


def _wait_ready(*descriptors: int) -> list[int]:
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll()]


def _become(request: dict[str, Any]) -> None:
    """Be `python -m onelane`, as a fresh process would be."""
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False))
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]
    sys.argv[1:] = request["arguments"]
    sys.orig_argv[1:] = ["-m", "onelane", *request["arguments"]]
    importlib.invalidate_caches()
    gc.enable()
    runpy.run_module("onelane", run_name="__main__", alter_sys=True)


def main(descriptor: int) -> None:
    gc.disable()
    for name in PRELOADED:
        importlib.import_module(name)
    from onelane.config import parse

    # What the first use makes, and keeps.
    parse({"apps": {"a": {"services": ["a:A"], "listen": "127.0.0.1:0"}}})
    # Of the folder of an app, there may be another.
    sys.modules.pop("tests", None)
    gc.freeze()
    line = socket.socket(fileno=descriptor)
    if (request := serve(line)) is not None:
        line.detach()
        _become(request)


if __name__ == "__main__":
    main(int(sys.argv[1]))
