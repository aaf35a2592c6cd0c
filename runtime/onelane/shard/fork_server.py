"""A process that has imported all that shards need, and forks them: `python -m onelane.shard.fork_server FD`, started
by the supervisor alone.

A fork is ready in a tenth of the time that a fresh interpreter takes, and shares its memory with its siblings until it
writes to it. What makes forks dangerous is not here: the server has one thread, no event loop, no code of a service,
and not grpcio's C core (`deferred_core`); where that does not hold, it says so and ends.
Promises: a shard has its own session, the signals and the random numbers of a fresh process, and no descriptor but its
own; nothing is forked once a file has changed that has been imported, as by an upgrade: a new server is needed then.
Its packets on the line: see `ForkAnswer`. It ends with the line; shards live on.
"""

import contextlib
import errno
import gc
import importlib
import json
import os
import re
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NoReturn, TypedDict

MAX_SOCKETS = 8
"""Descriptors of one shard: its control line and listening sockets."""
MAX_PACKET = 4096
QUIET_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Sent to a whole group of processes, and meant for the supervisor, with which the server ends."""
PRELOADED = (
    "onelane.server.native_listener",
    "onelane.cluster.membership.supervised",
    "onelane.state.store",
    "msgspec",
    "grpc_health.v1.health",
    "grpc_health.v1.health_pb2_grpc",
    "grpc_reflection.v1alpha._async",
    "grpc_reflection.v1alpha.reflection_pb2_grpc",
)
"""What nearly every shard imports as it starts, beside its process's own modules."""


class ForkAnswer(TypedDict, total=False):
    """A packet of the server, as JSON: it is ready, or unfit; and for each request a process, or why there is none."""

    ready: bool
    unfit: str
    """Why it forks nothing; it has ended."""
    pid: int
    """Of the new shard. With the packet comes a descriptor of the process."""
    errno: int
    """The system starts no process now."""
    stale: str
    """A file that has changed since it was imported."""
    ended: int
    """The number of a shard that has ended, with `code`."""
    code: int
    """As of `Popen.returncode`."""


class Files:
    """The interpreter and the files of all modules that are imported, as they are now."""

    def __init__(self) -> None:
        self._seen: Mapping[str, tuple[int, int, int]] = MappingProxyType(
            {path: stamp for path in _module_files() if (stamp := _stamp(path)) is not None}
        )

    def changed(self) -> str:
        """A file that is not what it was; ""."""
        return next((path for path, stamp in self._seen.items() if _stamp(path) != stamp), "")


def _module_files() -> set[str]:
    paths = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return {sys.executable, *(path for path in paths if isinstance(path, str))}


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def serve(line: socket.socket, changed: Callable[[], str]) -> list[int] | None:
    """Fork a shard for each packet of the supervisor, and report the ends of all; returns None once the supervisor is
    gone, and in a fork the descriptors that are the shard's.

    changed: see `Files.changed`.
    """
    shards: dict[int, int] = {}
    """Descriptor of the process → its number."""
    while True:
        ready = _wait_ready(line.fileno(), *shards)
        for pidfd in ready & set(shards):
            _report_end(line, shards.pop(pidfd), pidfd)
        if line.fileno() not in ready:
            continue
        request, received = _receive(line)
        if not request:
            return None
        if _forks(line, int(request), received, shards, changed):
            for descriptor in (*shards, line.detach()):
                os.close(descriptor)
            return received
        for descriptor in received:
            os.close(descriptor)


def _wait_ready(*descriptors: int) -> set[int]:
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll()}


def _receive(line: socket.socket) -> tuple[bytes, list[int]]:
    """The next packet, and the descriptors that came with it; no packet once the supervisor is gone."""
    try:
        request, received, _, _ = socket.recv_fds(line, MAX_PACKET, MAX_SOCKETS, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return b"", []
    return request, received


def _forks(
    line: socket.socket, expected: int, received: list[int], shards: dict[int, int], changed: Callable[[], str]
) -> bool:
    """Fork, unless something is against it; whether this is the fork."""
    try:
        if len(received) != expected:
            # The limit of this process: the system drops what it cannot hand over.
            _send(line, {"errno": errno.EMFILE})
        elif stale := changed():
            _send(line, {"stale": stale})
        elif (pid := os.fork()) == 0:
            return True
        else:
            _report_start(line, pid, shards)
    except OSError as error:
        _send(line, {"errno": error.errno or errno.EAGAIN})
    return False


def _report_start(line: socket.socket, pid: int, shards: dict[int, int]) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    shards[pidfd] = pid
    _send(line, {"pid": pid}, pidfd)


def _report_end(line: socket.socket, pid: int, pidfd: int) -> None:
    _, status = os.waitpid(pid, 0)
    os.close(pidfd)
    _send(line, {"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def _send(line: socket.socket, answer: ForkAnswer, *descriptors: int) -> None:
    # Where the supervisor is gone, the next packet says so.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        socket.send_fds(line, [json.dumps(answer).encode()], descriptors)


def _unfit() -> str:
    """Why this process is not to be forked; ""."""
    from onelane.server import deferred_core

    if deferred_core.is_loaded():
        return "grpcio's core is loaded"
    try:
        os.close(os.pidfd_open(os.getpid()))
        threads = len(os.listdir("/proc/self/task"))
    except (OSError, AttributeError) as error:
        # Older than Linux 5.3, not Linux, or not allowed to.
        return f"{type(error).__name__}: {error}"
    if threads > 1:
        return f"it has {threads} threads"
    return ""


def _prepare() -> None:
    """Import what shards need, and have the collector leave it alone: what it writes to is shared no longer."""
    from onelane.server import deferred_core, deferred_protobuf

    gc.disable()
    deferred_core.install()
    deferred_protobuf.install()
    importlib.import_module("onelane.shard.process")
    for name in PRELOADED:
        importlib.import_module(name)
    # What imports have left behind, and shards have no use for: their pages hold what shards allocate, instead.
    re.purge()
    sys.path_importer_cache.clear()
    gc.collect()
    gc.freeze()


def _become_shard(descriptors: list[int], handlers: Mapping[signal.Signals, Any]) -> NoReturn:
    """Be the process of a shard, as a fresh one would be. handlers: of the signals, as the server was started."""
    from onelane.shard import process

    for number, handler in handlers.items():
        signal.signal(number, handler)
    os.setsid()
    gc.enable()
    importlib.invalidate_caches()
    process.become(*descriptors)


def main(descriptor: int) -> None:
    """See the module. descriptor: the server's end of the line."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in QUIET_SIGNALS}
    # Ignored, as some programs leave it to those they start, the system would keep no exit codes.
    handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    line = socket.socket(fileno=descriptor)
    _prepare()
    files = Files()
    if reason := _unfit():
        _send(line, {"unfit": reason})
        return
    _send(line, {"ready": True})
    if (descriptors := serve(line, files.changed)) is not None:
        _become_shard(descriptors, handlers)


if __name__ == "__main__":
    main(int(sys.argv[1]))
