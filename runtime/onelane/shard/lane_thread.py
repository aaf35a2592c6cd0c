"""A lane's thread, and the watchdog's own, as the operating system measures them: CPU time, scheduling delay, state.

Linux only: elsewhere nothing but the wall time is known (`is_measurable` is False).
"""

import os
import resource
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

    def now(self) -> float:
        """The clock by which stalls are measured, in seconds."""
        return time.monotonic()

    def sample(self) -> Sample:
        """A cheap sample that does not release the interpreter; its `delay_s` is therefore unknown, and below 0."""
        if not self.is_measurable:
            return Sample(self.now(), 0.0, -1.0, 0.0)
        cpu_s = time.clock_gettime(self._clock)
        return Sample(self.now(), cpu_s, -1.0, time.process_time() - cpu_s - time.thread_time())

    def delay_s(self) -> float:
        """How long in all the thread was ready to run and had no CPU."""
        return _delay_s(self._read("schedstat"))

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


class OwnThread:
    """What the watchdog's thread has waited for since its last look. Create and use it on that thread."""

    def __init__(self) -> None:
        self.is_measurable = sys.platform.startswith("linux")
        path = f"/proc/self/task/{threading.get_native_id()}/schedstat"
        self._file = _open(path) if self.is_measurable else None
        self._looked_at_s = self._waited_in_all_s()

    def looked(self) -> None:
        """A look is over; the time until the next one begins."""
        self._looked_at_s = self._waited_in_all_s()

    def waited_s(self) -> float:
        """How long since then it was ready to run and had no CPU, or waited for the interpreter. Releases that."""
        return self._waited_in_all_s() - self._looked_at_s

    def _waited_in_all_s(self) -> float:
        if self._file is None:
            return 0.0
        # A thread that wants the interpreter wakes to ask for it, once in each switch interval.
        asked = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        return _delay_s(os.pread(self._file, 64, 0)) + asked * sys.getswitchinterval()

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)


def _delay_s(schedstat: bytes) -> float:
    fields = schedstat.split()
    return int(fields[1]) / 1e9 if len(fields) > 1 else 0.0


def _open(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
