"""Wall time is another one here; Python imports this at its start."""

import os
import time

_time, _time_ns = time.time, time.time_ns
_ahead_s = float(os.environ["TEST_WALL_AHEAD_S"])


def _other_time() -> float:
    return _time() + _ahead_s


def _other_time_ns() -> int:
    return _time_ns() + int(_ahead_s * 1e9)


time.time, time.time_ns = _other_time, _other_time_ns
