"""Machines whose clock runs at another rate: all its processes import `sitecustomize` from this folder."""

import os
import time
from pathlib import Path

from tests.running_app import ROOT

RATE, ORIGIN = "TEST_CLOCK_RATE", "TEST_CLOCK_ORIGIN"
"""Variables: seconds of that clock in one of this machine's, and the time at which both show the same."""


def environment_of(rate: float) -> dict[str, str]:
    """The environment of such a machine."""
    folders = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""), str(ROOT)]
    return {
        RATE: str(rate),
        ORIGIN: str(time.clock_gettime(time.CLOCK_BOOTTIME)),
        "PYTHONPATH": os.pathsep.join(filter(None, folders)),
    }
