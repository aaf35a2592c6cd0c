"""`python -m onelane` in a fork of a process that has imported the command line, and its fork server in a fork of
another that has imported what shards need: an app starts in a fifth of the processor time. What differs from fresh
processes: their command line in `/proc`, that their modules are imported already, that the fork server is no child of
its app, and that they end as soon as their threads and exit handlers have, by which all pages would become their own
ones before they are given back.

Run as `python -m tests.warm_command FD FORKS`, with the line to the second, it is the first of these, as `… FD servers`
the second; they end with the tests that have started them.
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
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn, TextIO

PRELOADED = (
    "anyio._backends._asyncio",
    "msgspec",
    "onelane.cli.check",
    "onelane.cli.main",
    "onelane.cli.run_apps",
    "onelane.cli.top",
    "onelane.supervisor.admin.server",
    "onelane.supervisor.cluster_member",
    "onelane.supervisor.cluster_placing",
    "onelane.supervisor.supervisor",
    "onelane.supervisor.systemd",
    "onelane.telemetry.sinks.prometheus",
    "uvloop",
)
"""What the process of an app, a machine or a command imports, but for services and grpcio's core, which that of an app
may not import."""
SERVERS = "servers"
"""What the process is called that forks fork servers."""
DECIDES_IMPORTS = ("PYTHON", "PROTOCOL_BUFFERS_", "GRPC_")
"""How the variables begin that modules read as they are imported."""
NAME_OF_APP = "of {}"
"""The name of a fork server, and of its shards: by it `descendants` knows whose they are, beside their parent."""
CLONE_NEWNET = 0x40000000
MAX_PACKET = 1 << 17
MAX_DESCRIPTORS = 4
_starting = threading.Lock()
"""Threads that are the first to start a command have one process that forks between them."""


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

    def fileno(self) -> int:
        """Of a descriptor that can be read once it has ended, after which `poll` has its exit code."""
        return self._line

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


def start(
    arguments: Sequence[str],
    *,
    cwd: Path,
    stderr: IO[str],
    environment: Mapping[str, str],
    stdout: IO[str] | None = None,
    namespace: str = "",
) -> WarmCommand:
    """`python -m onelane ARGUMENTS`. stdout: if None, a pipe, from which that of the command reads; else that is empty.
    namespace: the file of the network namespace that it runs in, if not in ours."""
    reading, writing = os.pipe() if stdout is None else (os.open(os.devnull, os.O_RDONLY), os.dup(stdout.fileno()))
    request = {"arguments": list(arguments), "cwd": str(cwd), "environment": dict(environment), "network": namespace}
    with _starting:
        line = server().line
    try:
        return _forked(line, request, [writing, stderr.fileno()], reading)
    finally:
        os.close(writing)


def _forked(line: socket.socket, request: Mapping[str, Any], descriptors: Sequence[int], stdout: int) -> WarmCommand:
    """Have a process fork another one, which gets the descriptors. stdout: the end from which its output is read."""
    own_line, command_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # The end of the process comes on a line of its own: commands end in any order, and threads wait for them.
    with command_end:
        socket.send_fds(line, [json.dumps(request).encode()], [command_end.fileno(), *descriptors])
    pid = json.loads(own_line.recv(MAX_PACKET))["pid"]
    return WarmCommand(pid, own_line, io.TextIOWrapper(io.FileIO(stdout)), ["onelane", *request["arguments"]])


class Server(NamedTuple):
    """The process that forks, and our end of the line to it: it ends with the line."""

    process: subprocess.Popen[bytes]
    line: socket.socket

    def close(self) -> None:
        self.line.close()
        self.process.wait()


@functools.cache
def server() -> Server:
    """Of commands."""
    return _started(str(servers().line.fileno()), pass_fds=[servers().line.fileno()])


@functools.cache
def servers() -> Server:
    """Of fork servers."""
    return _started(SERVERS)


def _started(*arguments: str, pass_fds: Sequence[int] = ()) -> Server:
    line, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", __name__, str(server_end.fileno()), *arguments]
    with server_end:
        process = subprocess.Popen(command, pass_fds=[server_end.fileno(), *pass_fds], cwd=Path(__file__).parent.parent)
    started = Server(process, line)
    atexit.register(started.close)
    return started


def fork_servers(app: int) -> set[int]:
    """The fork server of an app that `start` has started. Linux only."""
    if not servers.cache_info().currsize:
        return set()
    pid, name = servers().process.pid, NAME_OF_APP.format(app)
    pids = set()
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        # It may end meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{child}/comm").read_text().strip() == name:
                pids.add(int(child))
    return pids


def serve(line: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Fork for each request, and report the ends; returns the request and its descriptors in a fork, None once the
    tests are over."""
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
            packet, received, _, _ = socket.recv_fds(line, MAX_PACKET, MAX_DESCRIPTORS)
            if not packet:
                return None
            line_descriptor, *descriptors = received
            if (pid := os.fork()) == 0:
                request: dict[str, Any] = json.loads(packet)
                return request, descriptors
            end_line = socket.socket(fileno=line_descriptor)
            end_line.send(json.dumps({"pid": pid}).encode())
            commands[os.pidfd_open(pid)] = pid, end_line
            for descriptor in descriptors:
                os.close(descriptor)


def _wait_ready(*descriptors: int) -> list[int]:
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll()]


def _become(request: Mapping[str, Any], module: str) -> None:
    """Be `python -m MODULE`, as a fresh process would be."""
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False))
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]
    sys.argv[1:] = request["arguments"]
    sys.orig_argv[1:] = ["-m", module, *request["arguments"]]
    importlib.invalidate_caches()
    gc.enable()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        _exit_at_once(end.code or 0)
    _exit_at_once(0)


def _exit_at_once(code: int) -> NoReturn:
    """End as the interpreter does, but without the destruction of all objects, which takes longer than the life of most
    apps of tests: each page that a fork shares is copied for it."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        sys.exit(code)
    os._exit(code)


def _close_all_but(*descriptors: int) -> None:
    first = 3
    for descriptor in sorted(descriptors):
        os.closerange(first, descriptor)
        first = descriptor + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def _enter(network: str) -> None:
    """Be in the network namespace of this file; "" is that of the tests."""
    if not network:
        return
    from ctypes import CDLL, get_errno

    with open(network) as file:
        # `os.setns` is there from CPython 3.12 on.
        if CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
            raise OSError(get_errno(), f"setns to {network}")


def _run_commands(line: socket.socket, servers_descriptor: int) -> None:
    """Be the process that forks commands. servers_descriptor: of the line to the one that forks fork servers."""
    for name in PRELOADED:
        importlib.import_module(name)
    from onelane.config import parse

    # What the first use makes, and keeps.
    parse({"apps": {"a": {"services": ["a:A"], "listen": "127.0.0.1:0"}}})
    gc.freeze()
    if (forked := serve(line)) is None:
        return
    line.detach()
    request, (stdout, stderr) = forked
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    _enter(request["network"])
    _close_all_but(servers_descriptor)
    _start_warm_fork_server(servers_descriptor, request)
    _become(request, "onelane")


def _start_warm_fork_server(servers_descriptor: int, request: Mapping[str, Any]) -> None:
    """Have the command line start its first fork server, before all else, as a fork too; where it needs another, files
    have changed. The descriptor is closed by then.
    """
    from onelane.cli import entry
    from onelane.supervisor import server_process

    line = socket.socket(fileno=servers_descriptor)
    if not entry.forks_shards(request["arguments"]) or of_imports(request["environment"]) != of_imports(os.environ):
        line.close()
        return

    fresh_start = server_process.start

    def start(environment: Mapping[str, str]) -> server_process.ServerProcess:
        server_process.start = fresh_start
        own_line, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        own_line.setblocking(False)
        server_request = {
            "arguments": [],
            "cwd": os.getcwd(),
            "environment": {**environment, "GRPC_ENABLE_FORK_SUPPORT": "0"},
            "app": os.getpid(),
            "network": request["network"],
        }
        with line, server_end:
            process: Any = _forked(line, server_request, [1, 2, server_end.fileno()], os.open(os.devnull, os.O_RDONLY))
        process.stdout.close()
        return server_process.ServerProcess(process, own_line, dict(environment))

    server_process.start = start


def of_imports(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(DECIDES_IMPORTS)}


def _run_servers(line: socket.socket) -> None:
    """Be the process that forks fork servers."""
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    before = set(os.environ)
    from onelane import shard
    from onelane.shard import fork_server

    fork_server._prepare()
    set_by_imports = {name: value for name, value in os.environ.items() if name not in before}
    # It is the main module of a fork.
    del sys.modules[fork_server.__name__], shard.fork_server, fork_server
    gc.freeze()
    if (forked := serve(line)) is None:
        return
    line.detach()
    request, (stdout, stderr, server_end) = forked
    _enter(request["network"])
    os.setsid()
    Path("/proc/self/comm").write_text(NAME_OF_APP.format(request["app"]))
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    _close_all_but(server_end)
    environment = set_by_imports | request["environment"]
    _become({**request, "arguments": [str(server_end)], "environment": environment}, "onelane.shard.fork_server")


def main(descriptor: int, role: str) -> None:
    gc.disable()
    # Of the folder of an app, there may be another.
    sys.modules.pop("tests", None)
    line = socket.socket(fileno=descriptor)
    if role == SERVERS:
        _run_servers(line)
    else:
        _run_commands(line, int(role))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
