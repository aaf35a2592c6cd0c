"""A lane's thread as the operating system measures it: CPU time, scheduling delay, state.

Linux only: elsewhere nothing but the wall time is known (`is_measurable` is False).
"""

import os
import sys
import threading
import time

from onelane.telemetry.stalls import Sample


class LaneThread:
    """Create it on the lane's thread; read it from the watchdog's. `close` closes its files."""

    def __init__(self) -> None:
        self.ident = threading.get_ident()
        self.is_measurable = sys.platform.startswith("linux")
        self._files: dict[str, int | None] = {}
        if self.is_measurable:
            self._clock = time.pthread_getcpuclockid(self.ident)
            # Opened now: a system call releases the interpreter, and a stalled lane would give it back late.
            folder = f"/proc/self/task/{threading.get_native_id()}"
            self._files = {name: _open(f"{folder}/{name}") for name in ("schedstat", "stat", "status")}

    def sample(self) -> Sample:
        """A cheap sample that does not release the interpreter; its `delay_s` is therefore unknown, and below 0."""
        if not self.is_measurable:
            return Sample(time.monotonic(), 0.0, -1.0, 0.0)
        cpu_s = time.clock_gettime(self._clock)
        return Sample(time.monotonic(), cpu_s, -1.0, time.process_time() - cpu_s - time.thread_time())

    def delay_s(self) -> float:
        """How long in all the thread was ready to run and had no CPU."""
        fields = self._read("schedstat").split()
        return int(fields[1]) / 1e9 if len(fields) > 1 else 0.0

    def state(self) -> str:
        """One letter; see `Evidence.state`."""
        return self._read("stat").rpartition(b")")[2].strip()[:1].decode()

    def wakes(self, seconds: float) -> int:
        """How often the thread gave up its CPU voluntarily in the next `seconds`. Sleeps that long."""
        before = self._voluntary_switches()
        time.sleep(seconds)
        return self._voluntary_switches() - before

    def close(self) -> None:
        for file in self._files.values():
            if file is not None:
                os.close(file)

    def _voluntary_switches(self) -> int:
        lines = self._read("status").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith(b"voluntary_ctxt_switches")), 0)

    def _read(self, name: str) -> bytes:
        file = self._files.get(name)
        return b"" if file is None else os.pread(file, 8192, 0)


def _open(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
