"""The tutorial works as written: its files, its commands in order, and what they print."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from docs.generator.blocks import Block
from tests.docs.pages import blocks
from tests.running_app import RunningApp, never_late, running_command

pytestmark = pytest.mark.slow
TUTORIAL = "docs/tutorial.md"


class Session:
    """What a reader does, in two terminals: `onelane up` runs in the first, all else in the second."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._texts: dict[Path, str] = {}
        """Files as the page has them: their addresses are replaced by free ones once an app listens there."""
        self._addresses: dict[str, str] = {}
        self._environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "160"}
        self._app = ExitStack()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *error: object) -> None:
        self._app.close()

    def write(self, block: Block) -> None:
        path = self.folder / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        self._texts[path] = block.text
        path.write_text(self._replaced(block.text) if path.suffix == ".py" else block.text)

    def run(self, line: str) -> str:
        """What a command prints."""
        words = shlex.split(line)
        if words[0] == "cd":
            self.folder /= words[1]
            return ""
        if words[:2] == ["onelane", "up"]:
            self._up()
            return ""
        environment = os.environ | self._environment
        done = subprocess.run(words, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        return done.stdout

    def _up(self) -> None:
        self._app.close()
        documented = (self.folder / "onelane.toml").read_text()
        on_free_ports = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:0", documented)
        (self.folder / "free.toml").write_text(f'admin = "127.0.0.1:0"\n{on_free_ports}')
        log = self.folder / "log"
        command = running_command("up", "free.toml", cwd=self.folder, log=log, fresh=None, **never_late(documented))
        app = self._app.enter_context(command)
        self._environment["ONELANE_ADMIN"] = app.admin
        self._addresses = dict(listening(documented, app))
        for path, text in self._texts.items():
            if path.suffix == ".py":
                path.write_text(self._replaced(text))

    def _replaced(self, text: str) -> str:
        for documented, actual in self._addresses.items():
            text = text.replace(documented, actual)
        return text


def listening(toml: str, app: RunningApp) -> Iterator[tuple[str, str]]:
    """The address of each app in its file → that at which it listens."""
    for name, settings in tomllib.loads(toml)["apps"].items():
        yield settings["listen"], app.listen[name]


def test_the_tutorial_works_as_written(tmp_path: Path) -> None:
    output, compared = "", 0
    with Session(tmp_path) as session:
        for block in blocks(TUTORIAL):
            if block.file:
                session.write(block)
            elif block.language == "sh":
                for line in block.text.splitlines():
                    output = session.run(line)
            elif block.language == "text":
                assert output == block.text, f"line {block.line}"
                compared += 1
    assert compared == 3
