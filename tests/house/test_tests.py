"""Tests mirror rooms: the tests of `runtime/onelane/<room>/<module>.py` are `tests/<room>/test_<module>.py`."""

from pathlib import Path

import pytest

from tests.house.test_layers import FILES, ROOMS
from tests.running_app import ROOT

TESTS = ROOT / "tests"
ROOM_TESTS = sorted(file for room in ROOMS for file in (TESTS / room).rglob("test_*.py"))
BEYOND_MODULES = {"cluster/test_arena", "cluster/test_arena_like_a_user", "cluster/test_arena_profile"}
BEYOND_MODULES |= {"cluster/test_outage", "telemetry/sinks/test_seam"}
"""Of a whole app, or of a seam and all that stands behind it."""


def is_of_a_module(file: Path) -> bool:
    """Whether its name is a module's of its room, or that and an aspect: `test_<module>_<aspect>.py`."""
    folder = file.parent.relative_to(TESTS).as_posix()
    words = file.stem.removeprefix("test_").split("_")
    return any(f"{folder}/{'_'.join(words[:count])}" in FILES for count in range(1, len(words) + 1))


@pytest.mark.parametrize("file", ROOM_TESTS, ids=lambda file: file.stem)
def test_a_test_file_stands_where_its_module_does(file: Path) -> None:
    name = file.relative_to(TESTS).with_suffix("").as_posix()
    assert is_of_a_module(file) or name in BEYOND_MODULES
