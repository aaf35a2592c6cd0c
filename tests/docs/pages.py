"""A page of the documentation as a session: its files, its tests, and the commands that it shows."""

import importlib
import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from onelane.testing import Cluster

from docs.generator.blocks import Block, blocks_of
from tests.running_app import ROOT

WRITTEN = sorted(page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md"))
"""The pages of docs/."""
RUN_BY_COMMANDS = {"docs/tutorial.md"}
"""Pages whose shell blocks are run, too: their files need what these make."""


def blocks(page: str) -> list[Block]:
    return list(blocks_of((ROOT / page).read_text()))


def files_of(page: str) -> dict[str, str]:
    """The files of a page; of one that it shows twice, the last."""
    return {block.file: block.text for block in blocks(page) if block.file}


def write(files: dict[str, str], folder: Path) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def generate(folder: Path) -> None:
    """The modules of its protos."""
    command = [sys.executable, "-m", "onelane", "proto"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Modules of the folder can be imported; they are forgotten at the end, since other pages have modules of the same
    names."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in modules_in(folder):
            del sys.modules[name]


def modules_in(folder: Path) -> list[str]:
    return [name for name, module in sys.modules.items() if _is_in(module, folder)]


def _is_in(module: ModuleType, folder: Path) -> bool:
    places = [module.__file__] if getattr(module, "__file__", None) else list(getattr(module, "__path__", []))
    return any(place is not None and place.startswith(f"{folder}/") for place in places)


def test_modules(folder: Path) -> list[str]:
    return sorted(file.stem for file in folder.glob("test_*.py"))


async def run_tests(folder: Path) -> int:
    """Run the test files of a page, as pytest would run them with the fixture `onelane_cluster`; their number."""
    count = 0
    for module in map(importlib.import_module, test_modules(folder)):
        for name, test in vars(module).items():
            if not name.startswith("test_"):
                continue
            count += 1
            outcome = test(Cluster) if inspect.signature(test).parameters else test()
            if inspect.isawaitable(outcome):
                await outcome
    return count


def commands(page: str) -> Iterator[list[str]]:
    """The words of each command of `onelane` in the shell and console blocks of a page, without what stands before."""
    for block in blocks(page):
        for line in block.text.replace("\\\n", " ").splitlines():
            shown = line if block.language == "sh" else line.removeprefix("$ ") if line.startswith("$ ") else ""
            if block.language in ("sh", "console") and shown:
                words = shlex.split(re.split(r" [|>] ", shown)[0], comments=True)
                while words and re.match(r"[A-Z_]+=", words[0]):
                    words.pop(0)
                if words and words[0] == "onelane":
                    yield words[1:]
