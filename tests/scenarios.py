"""Orders of events as text, in the manner of etcd raft's `testdata`: a reviewer needs no Python for them.

A scenario is a file of commands. Below each command stands its output, indented by two spaces: all that follows from
it, until nothing more happens. Lines that begin with `#`, and empty ones, are for the reader.

    # A call is served by the owner of its key, whichever shard it comes to.

    start 2
      0 serves
      1 serves
    key a of 0
    call a at 1
      OK by 0, forwarded, its call 1 of the key

The test that plays the files says in its docstring what the commands mean; a `Scenario` carries them out on real parts
of the runtime: a shard's steering (`tests/server`), a connection (`tests/server`), the supervisor of an app
(`tests/supervisor`), the shards of a whole app (`tests/cluster`). What one command leads to must not depend on time:
sockets and shards are in one process, and a clock is moved by a command.

A test fails at a difference in order, at a missing line and at an extra one. To write a scenario, or to change what
follows, write the commands alone and let the outputs be filled in, then review the diff:

    REWRITE=1 pytest tests/cluster/test_scenarios.py

To add a command, add the method that carries it out; to add a subject, a class with the two methods of `Scenario`,
files beside its test, and a test as in `tests/cluster/test_scenarios.py`.
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


def files_of(test: str, folder: str = ".") -> list[Path]:
    """The scenarios beside a test file. test: its `__file__`. folder: below `scenarios`."""
    files = sorted((Path(test).parent / "scenarios" / folder).glob("*.txt"))
    assert files, "a test that plays no file"
    return files


async def check(file: Path, begin: Callable[[], Scenario]) -> None:
    """Play a scenario and compare each output."""
    expected = _read(file)
    actual = await played(expected, begin())
    if "REWRITE" in os.environ:
        _rewrite(file, actual)
        return
    assert actual == expected


async def played(text: str, scenario: Scenario) -> str:
    """The commands of `text`, each with its output as it is."""
    lines: list[str] = []
    try:
        for number, line in enumerate(text.splitlines(), start=1):
            if line.startswith("  "):
                continue
            lines.append(line)
            if line and not line.startswith("#"):
                lines += [f"  {output}" for output in await _run(scenario, line, number)]
    finally:
        await scenario.aclose()
    return "\n".join(lines) + "\n"


async def _run(scenario: Scenario, line: str, number: int) -> list[str]:
    try:
        return await scenario.run(line)
    except Exception as error:
        error.add_note(f"in line {number} of the scenario: {line}")
        raise


def _read(file: Path) -> str:
    return file.read_text()


def _rewrite(file: Path, text: str) -> None:
    file.write_text(text)
