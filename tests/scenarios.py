"""Orders of events as text, in the manner of etcd raft's `testdata`: a file has commands, and below each, indented by
two spaces, its output. Lines that begin with `#` say what the scenario shows.

A reviewer needs no Python for them, and a difference in order, a missing line or an extra one fails the test. With the
environment variable REWRITE set, the files get the outputs as they are, to be reviewed in the diff.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol


class Scenario(Protocol):
    """The things that the commands of a file act on, made anew for each file."""

    async def run(self, line: str) -> list[str]:
        """Carry out one command, wait until nothing more happens, and return its output."""

    async def aclose(self) -> None:
        """End everything that the scenario began."""


def files_of(test: str) -> list[Path]:
    """The scenarios beside a test file. test: its `__file__`."""
    return sorted((Path(test).parent / "scenarios").glob("*.txt"))


async def check(file: Path, begin: Callable[[], Scenario]) -> None:
    """Play a scenario and compare each output."""
    expected = _read(file)
    actual = await played(expected, begin())
    _rewrite(file, actual)
    assert actual == expected


async def played(text: str, scenario: Scenario) -> str:
    """The commands of `text`, each with its output as it is."""
    lines: list[str] = []
    try:
        for line in text.splitlines():
            if line.startswith("  "):
                continue
            lines.append(line)
            if line and not line.startswith("#"):
                lines += [f"  {output}" for output in await scenario.run(line)]
    finally:
        await scenario.aclose()
    return "\n".join(lines) + "\n"


def _read(file: Path) -> str:
    return file.read_text()


def _rewrite(file: Path, text: str) -> None:
    if "REWRITE" in os.environ:
        file.write_text(text)
