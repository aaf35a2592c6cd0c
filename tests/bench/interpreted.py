"""Apps of onelane that run interpreted: as it is now, and as a commit before anything of it was compiled had it."""

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.running_app import ROOT

PURE_PYTHON = "BENCH_PURE"
"""The variable with the Python whose onelane is not compiled; without it no app runs interpreted."""


@dataclass(frozen=True, slots=True)
class Sources:
    """A Python, and the folder of the sources that it runs."""

    python: str
    root: Path = ROOT

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which these sources are imported, whatever is installed."""
        return {"PYTHONPATH": f"{self.root / 'runtime'}{os.pathsep}{self.root}"}


def require_interpreted(sources: Sources, pids: Iterable[int]) -> None:
    """Check what these processes, which `sources` started, run.

    Raises:
        RuntimeError: onelane or its echo service is imported from elsewhere, or not at all; or a process has loaded
            something compiled of onelane.
    """
    program = "import onelane, tests.echo.service as echo; print(onelane.__file__, echo.__file__, sep='\\n')"
    # Not in the folder of these sources, which `-c` would import first.
    outcome = subprocess.run(
        [sources.python, "-c", program],
        capture_output=True,
        text=True,
        cwd="/",
        env=os.environ | sources.environment,
    )
    expected = [sources.root / "runtime" / "onelane" / "__init__.py", sources.root / "tests" / "echo" / "service.py"]
    imported = [Path(line) for line in outcome.stdout.splitlines()]
    if imported != expected:
        raise RuntimeError(f"imported {imported}, expected {expected} {outcome.stderr}")
    for pid in pids:
        if compiled := compiled_parts(pid):
            raise RuntimeError(f"process {pid} runs compiled code of onelane: {compiled}; expected none")


def compiled_parts(pid: int) -> list[str]:
    """Files of extensions of the package onelane that a process has loaded. Linux only."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    files = {Path(line.split(maxsplit=5)[5]) for line in lines if line.endswith(".so")}
    return sorted(str(file) for file in files if any(map(_is_onelane, file.parents)))


def _is_onelane(folder: Path) -> bool:
    """Whether it is the package, and not a clone of its repository that has the name."""
    return folder.name == "onelane" and (folder / "__init__.py").exists()
