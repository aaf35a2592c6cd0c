"""Ends shards that outlive their supervisor: a process of its own, which the launcher starts beside the first shard.

A shard whose supervisor was killed ends by itself, its calls and services first. One that is blocked, or stopped by a
signal, cannot; it would keep its ports from the next supervisor. The kernel could kill all of them with their parent
(PR_SET_PDEATHSIG), but at once, and so with the calls and services of those that are well.

Promises: a shard that has ended is never mistaken for another process of its number; while the supervisor lives, no
shard is touched. Leaves out: what that process does, see `orphan_guard_process`; and a guard that was killed itself is
only started anew with the next shard.
"""

import os
import subprocess
import sys
from pathlib import Path

_PROCESS = Path(__file__).with_name("orphan_guard_process.py")


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
        command = [sys.executable, "-I", "-S", str(_PROCESS), str(reading), str(self._grace_s)]
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
