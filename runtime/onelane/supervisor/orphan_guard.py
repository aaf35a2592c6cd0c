"""Ends shards that outlive their supervisor: a process of its own, which the launcher starts beside the first shard.

A shard whose supervisor was killed ends by itself, its calls and services first. One that is blocked, or stopped by a
signal, cannot; it would keep its ports from the next supervisor. The kernel could kill all of them with their parent
(PR_SET_PDEATHSIG), but at once, and so with the calls and services of those that are well.

Promises: a shard that has ended is never mistaken for another process of its number; while the supervisor lives, no
shard is touched. Leaves out: a guard that was killed itself is only started anew with the next shard.
Imports nothing but the standard library: it is there all the time, and does nothing.
"""

import os
import select
import signal
import subprocess
import sys
import time


class OrphanGuard:
    """The supervisor's end. The guard knows by the pipe between them when the supervisor is gone."""

    def __init__(self, grace_s: float) -> None:
        """grace_s: how long a shard may live on without its supervisor."""
        self._grace_s = grace_s
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe = -1

    def watch(self, pid: int) -> None:
        """Have a shard's process ended where it outlives this one.

        Raises:
            OSError: no guard can be started now, or the system has none: it is older than Linux 5.3.
        """
        if self._process is None or self._process.poll() is not None:
            self._start()
        os.write(self._pipe, b"%d\n" % pid)

    def close(self) -> None:
        """Let the guard end, as it does when this process is gone."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    def wait(self) -> None:
        """Wait until the guard has ended, after `close`."""
        if self._process is not None:
            self._process.wait()

    def _start(self) -> None:
        self.close()
        os.close(os.pidfd_open(os.getpid()))
        reading, self._pipe = os.pipe()
        command = [sys.executable, "-I", "-S", __file__, str(reading), str(self._grace_s)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=[reading],
            )
        finally:
            os.close(reading)


def guard(pipe: int, grace_s: float) -> None:
    """Learn the numbers of shards until the supervisor is gone; then kill those that have not ended in time."""
    shards: set[int] = set()
    """Descriptors of processes."""
    lines = b""
    while data := _read(pipe, shards):
        *pids, lines = (lines + data).split(b"\n")
        for pid in pids:
            try:
                shards.add(os.pidfd_open(int(pid)))
            except OSError:
                # It has ended.
                continue
    until = time.monotonic() + grace_s
    while shards and (remaining_s := until - time.monotonic()) > 0:
        _forget_ended(shards, remaining_s)
    for shard in shards:
        signal.pidfd_send_signal(shard, signal.SIGKILL)


def _read(pipe: int, shards: set[int]) -> bytes:
    """What the supervisor sends next; b"" once it is gone."""
    while pipe not in _forget_ended(shards, None, pipe):
        pass
    return os.read(pipe, 4096)


def _forget_ended(shards: set[int], wait_s: float | None, *others: int) -> set[int]:
    """Wait until a shard ends, or one of `others` can be read; forget shards that have ended. Returns what is ready."""
    poll = select.poll()
    for descriptor in (*shards, *others):
        poll.register(descriptor, select.POLLIN)
    ready = {descriptor for descriptor, _ in poll.poll(None if wait_s is None else wait_s * 1000)}
    for shard in shards & ready:
        os.close(shard)
        shards.discard(shard)
    return ready


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Meant for the supervisor, with whose end the guard ends.
        signal.signal(number, signal.SIG_IGN)
    guard(int(sys.argv[1]), float(sys.argv[2]))
