"""How many descriptors this process may still open: each connection takes one."""

import os
import resource

from onelane.telemetry.stats import Instrument

DESCRIPTORS = Instrument("onelane.descriptors.free", "{descriptor}", "Descriptors that the process may still open")
"""Measured by each shard and by the supervisor."""
_OPEN = "/proc/self/fd"


def descriptors_left() -> float:
    """Infinite where there is no limit, or where the system does not say how many are open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return float("inf")
    try:
        # From Linux 6.2 on the size of the folder is the number of open descriptors. Listed, 20,000 take 10 ms.
        count = os.stat(_OPEN).st_size or len(os.listdir(_OPEN))
    except OSError:
        return float("inf")
    return float(limit - count)
