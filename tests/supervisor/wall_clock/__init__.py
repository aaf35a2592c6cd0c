"""Machines whose wall clock is set wrong: all their processes import `sitecustomize` from this folder."""

import os
from pathlib import Path

from tests.running_app import ROOT

AHEAD = "TEST_WALL_AHEAD_S"
"""The variable with how far it is ahead; below zero: behind."""


def environment_of(ahead_s: float) -> dict[str, str]:
    """The environment of such a machine."""
    folders = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""), str(ROOT)]
    return {AHEAD: str(ahead_s), "PYTHONPATH": os.pathsep.join(filter(None, folders))}
