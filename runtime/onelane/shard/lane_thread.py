"""A lane's thread, and the watchdog's own, as the operating system measures them: CPU time, scheduling delay, state.

Linux only: elsewhere nothing but the wall time is known (`is_measurable` is False).
"""

import ctypes
import os
import resource
import sys
import threading
import time

from onelane.telemetry.stalls import Sample

SCHEDSTAT_BYTES = 128
"""More than the three counters of the file take."""


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
            self._files = {name: _open(f"{folder}/{name}") for name in ("stat", "status")}
            self._scheduling = _Scheduling(f"{folder}/schedstat")

    def now(self) -> float:
        """The clock by which stalls are measured, in seconds."""
        return time.monotonic()

    def sample(self) -> Sample:
        """The counters of one moment: does not release the interpreter, which a stalled lane would give back late."""
        if not self.is_measurable:
            return Sample(self.now(), 0.0, 0.0, 0.0)
        cpu_s = time.clock_gettime(self._clock)
        return Sample(self.now(), cpu_s, self.delay_s(), time.process_time() - cpu_s - time.thread_time())

    def delay_s(self) -> float:
        """How long in all the thread was ready to run and had no CPU."""
        return self._scheduling.delay_s() if self.is_measurable else 0.0

    def state(self) -> str:
        """One letter; see `Evidence.state`."""
        return self._read("stat").rpartition(b")")[2].strip()[:1].decode()

    def wakes(self, seconds: float) -> int:
        """How often the thread gave up its CPU voluntarily in the next `seconds`. Sleeps that long."""
        before = self._voluntary_switches()
        time.sleep(seconds)
        return self._voluntary_switches() - before

    def has_cpu(self, seconds: float) -> bool:
        """Whether the thread had a CPU for at least half of the next `seconds`. Sleeps that long."""
        at, cpu_s = time.monotonic(), time.clock_gettime(self._clock)
        time.sleep(seconds)
        return time.clock_gettime(self._clock) - cpu_s >= (time.monotonic() - at) / 2

    def close(self) -> None:
        for file in self._files.values():
            if file is not None:
                os.close(file)
        if self.is_measurable:
            self._scheduling.close()

    def _voluntary_switches(self) -> int:
        lines = self._read("status").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith(b"voluntary_ctxt_switches")), 0)

    def _read(self, name: str) -> bytes:
        file = self._files.get(name)
        return b"" if file is None else os.pread(file, 8192, 0)


class OwnThread:
    """What the watchdog's thread has waited for between its looks. Create and use it on that thread."""

    def __init__(self) -> None:
        self._scheduling: _Scheduling | None = None
        if sys.platform.startswith("linux"):
            self._scheduling = _Scheduling(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        self._waited_s = self._waited_in_all_s()

    def take_waited_s(self) -> float:
        """How long since the last call it was ready to run and had no CPU, or waited for the interpreter. Does not
        release that."""
        before, self._waited_s = self._waited_s, self._waited_in_all_s()
        return self._waited_s - before

    def _waited_in_all_s(self) -> float:
        if self._scheduling is None:
            return 0.0
        # A thread that wants the interpreter wakes to ask for it, once in each switch interval.
        asked = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        return self._scheduling.delay_s() + asked * sys.getswitchinterval()

    def close(self) -> None:
        if self._scheduling is not None:
            self._scheduling.close()


class _Scheduling:
    """A thread's `schedstat`. Linux only."""

    def __init__(self, path: str) -> None:
        self._file = _open(path)
        # Not `os.pread`, which releases the interpreter, so that counters read after it were of a later moment.
        self._pread = ctypes.PyDLL(None).pread
        self._pread.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long)
        self._pread.restype = ctypes.c_ssize_t
        self._buffer = ctypes.create_string_buffer(SCHEDSTAT_BYTES)

    def delay_s(self) -> float:
        """How long in all the thread was ready to run and had no CPU; 0 where the kernel does not tell it."""
        if self._file is None:
            return 0.0
        length = self._pread(self._file, self._buffer, SCHEDSTAT_BYTES, 0)
        fields = self._buffer.raw[: max(0, length)].split()
        return int(fields[1]) / 1e9 if len(fields) > 1 else 0.0

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)


def _open(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
