"""CLOCK_BOOTTIME, by which leases and fences count, runs at another rate here; Python imports it at its start."""

import os
import time

_clock_gettime = time.clock_gettime
_rate, _origin = float(os.environ["TEST_CLOCK_RATE"]), float(os.environ["TEST_CLOCK_ORIGIN"])


def _drifting(clock: int) -> float:
    now = _clock_gettime(clock)
    return _origin + (now - _origin) * _rate if clock == time.CLOCK_BOOTTIME else now


time.clock_gettime = _drifting
