"""`onelane up --reload`: what has changed is served, with the state of keys; what cannot be served changes nothing."""

import asyncio
import json
import py_compile
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from onelane.cli import new, reloading
from onelane.cli.main import main
from onelane.cli.reloading import FileChanges, forget_bytecode, is_followed, syntax_fault

from tests.bounds import BOUND_S
from tests.running_app import RunningApp, descendants, eventually, is_running, running_command

pytestmark = pytest.mark.slow
PLAIN = "+ request.amount"


class Project:
    """A project of `onelane new` that runs by `onelane up --reload`."""

    def __init__(self, folder: Path, app: RunningApp) -> None:
        self.folder = folder
        self.app = app
        self.source = (folder / "service.py").read_text()
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.app.process.stdout is not None
        for line in self.app.process.stdout:
            self.events.put(json.loads(line))

    def end(self) -> None:
        """End it, and read what it has written, before somebody closes its output."""
        self.app.process.terminate()
        self._reader.join()

    def edit(self, before: str, after: str, file: str = "service.py") -> None:
        """Replace a part of a file, as an editor does it: by a file that takes its place."""
        text = (self.folder / file).read_text()
        assert before in text
        draft = self.folder / ".draft"
        draft.write_text(text.replace(before, after))
        draft.replace(self.folder / file)

    def wait_for(self, *names: str) -> dict[str, Any]:
        """The next event of one of these names."""
        while (event := self.events.get(timeout=BOUND_S))["event"] not in names:
            pass
        return event

    def add(self, amount: int) -> int:
        """The total of a call."""
        request = json.dumps({"name": "apples", "amount": amount})
        run = CliRunner().invoke(main, ["call", self.app.listen["shop"], "Shop/Add", request])
        assert run.exit_code == 0, run.stderr
        return int(json.loads(run.stdout)["total"])


@contextmanager
def ended(project: Project) -> Iterator[Project]:
    """The project, which is ended at the end."""
    try:
        yield project
    finally:
        project.end()


@contextmanager
def reloaded(folder: Path) -> Iterator[Project]:
    new.create("shop", folder, generates=True)
    project = folder / "shop"
    settings = project / "onelane.toml"
    settings.write_text(settings.read_text().replace(":50051", ":0").replace("shards = 2", "shards = 1"))
    (folder / "library").mkdir()
    arguments = ("up", "--reload", "--reload-dir", str(folder / "library"), "--admin", "127.0.0.1:0", "--json")
    with running_command(*arguments, cwd=project, log=folder / "log", fresh=None) as app:
        app.listen["shop"] = app.status()["apps"]["shop"]["listen"]
        with ended(Project(project, app)) as running:
            yield running


@pytest.fixture(scope="module")
def running_project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with reloaded(tmp_path_factory.mktemp("reload")) as project:
        yield project


@pytest.fixture
def project(running_project: Project) -> Iterator[Project]:
    """As it was created; each test adds to the same total."""
    yield running_project
    if (running_project.folder / "service.py").read_text() != running_project.source:
        running_project.edit((running_project.folder / "service.py").read_text(), running_project.source)
        assert running_project.wait_for("reloaded", "not reloaded")["event"] == "reloaded"


def test_code_that_has_changed_is_served_and_totals_stay(project: Project) -> None:
    before = project.add(1)
    project.edit(PLAIN, "+ 2 * request.amount")
    assert project.wait_for("reloading")["files"] == "service.py"
    project.wait_for("reloaded")
    assert project.add(1) == before + 2


def test_a_syntax_error_is_told_with_file_and_line_and_the_old_code_serves_on(project: Project) -> None:
    before = project.add(1)
    lines = project.source.count("\n")
    project.edit(project.source, f"{project.source}def broken(:\n")
    reason = project.wait_for("not reloaded", "reloaded")["reason"]
    assert reason.startswith(f"{project.folder / 'service.py'}:{lines + 1}: ")
    assert project.add(1) == before + 1


def test_code_that_cannot_be_imported_is_told_with_file_and_line_and_the_old_code_serves_on(project: Project) -> None:
    before = project.add(1)
    lines = project.source.count("\n")
    project.edit(project.source, f"{project.source}1 / 0\n")
    reason = project.wait_for("not reloaded", "reloaded")["reason"]
    assert "ZeroDivisionError" in reason
    assert f'service.py", line {lines + 1}' in reason
    assert project.add(1) == before + 1


def test_a_proto_that_has_changed_is_generated_and_served(project: Project) -> None:
    proto = "proto/shop/v1/shop.proto"
    project.edit("int64 amount = 2;", "int64 amount = 2; string unit = 3;", proto)
    project.wait_for("generated")
    assert "shop_pb2" in project.wait_for("reloading")["files"]
    project.wait_for("reloaded")
    described = CliRunner().invoke(main, ["describe", project.app.listen["shop"], "shop.v1.AddRequest"])
    assert "string unit = 3;" in described.stdout
    project.edit("string unit = 3;", "strin unit = 3;", proto)
    assert '"strin" is not defined' in project.wait_for("not reloaded")["reason"]
    project.edit("strin unit = 3;", "", proto)
    project.wait_for("reloaded")


def test_settings_that_have_changed_are_used_and_faults_are_told(project: Project) -> None:
    project.edit("shards = 1", "shardz = 1", "onelane.toml")
    assert "did you mean 'shards'?" in project.wait_for("not reloaded")["reason"]
    project.edit("shardz = 1", "shards = 2", "onelane.toml")
    assert project.wait_for("settings changed")["change"] == "shop.shards: 1 → 2"
    project.edit("shards = 2", "max_streams = 7\nshards = 1", "onelane.toml")
    project.wait_for("settings changed")
    assert project.wait_for("needs restart")["change"].startswith("shop.max_streams: ")


def test_changes_that_come_together_are_one_restart(project: Project) -> None:
    """As of a checkout. The watching process stands still meanwhile, so that no pause of this test is a quiet time."""
    project.app.process.send_signal(signal.SIGSTOP)
    for number in range(20):
        (project.folder / f"more_{number}.py").write_text("")
    project.app.process.send_signal(signal.SIGCONT)
    assert project.wait_for("reloading")["files"].endswith("and 17 more")
    project.wait_for("reloaded")
    project.edit(PLAIN, "+ 3 * request.amount")
    assert project.wait_for("reloading")["files"] == "service.py"
    project.wait_for("reloaded")


def test_a_change_in_the_middle_of_a_restart_is_followed_after_it(project: Project) -> None:
    before = project.add(1)
    project.edit(PLAIN, "+ 2 * request.amount")
    project.wait_for("reloading")
    project.edit("+ 2 *", "+ 7 *")
    project.wait_for("reloaded")
    assert project.wait_for("reloading")["files"] == "service.py"
    project.wait_for("reloaded")
    assert project.add(1) == before + 7


def test_another_folder_is_watched_where_it_is_named(project: Project) -> None:
    (project.folder.parent / "library" / "prices.py").write_text("")
    assert project.wait_for("reloading")["files"] == "prices.py"
    project.wait_for("reloaded")


def test_what_cannot_be_watched_or_started_anew_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inline = CliRunner().invoke(main, ["up", "--reload", "--inline", str(tmp_path / "onelane.toml")])
    assert (inline.exit_code, "--inline has none" in inline.stderr) == (1, True)
    monkeypatch.setattr(reloading, "find_spec", lambda _: None)
    missing = CliRunner().invoke(main, ["up", "--reload", str(tmp_path / "onelane.toml")])
    assert "--reload needs watchfiles: pip install 'onelane[reload]'" in missing.stderr


@pytest.mark.parametrize(
    ("path", "follows"),
    [
        ("service.py", True),
        ("proto/a.proto", True),
        ("onelane.toml", True),
        ("other.toml", False),
        ("README.md", False),
        (".#service.py", False),
        (".venv/lib/x.py", False),
        ("venv/lib/x.py", False),
        ("a/__pycache__/b.py", False),
        ("node_modules/x.proto", False),
    ],
)
def test_only_code_protos_and_the_settings_file_are_followed(path: str, follows: bool) -> None:
    folder = Path("/home/.hidden/project")
    assert is_followed(folder / path, folder / "onelane.toml", [folder]) == follows


def test_changes_are_sorted_by_what_is_done_about_them() -> None:
    paths = [Path("b.py"), Path("a.py"), Path("a.py"), Path("x.proto"), Path("onelane.toml")]
    changes = FileChanges.of(paths, Path("onelane.toml"))
    assert changes == FileChanges((Path("a.py"), Path("b.py")), (Path("x.proto"),), True)


def test_a_file_is_checked_without_running_it(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    assert syntax_fault(file) == ""
    for text, fault in ((b"raise 1\n'\\d'", ""), (b"x = (\n", ":1: '(' was never closed"), (b"\xff", ""), (b"\0", "")):
        file.write_bytes(text)
        assert fault in syntax_fault(file)
        assert (syntax_fault(file) == "") == text.startswith(b"raise")


def test_bytecode_of_a_file_that_has_changed_is_not_used_again(tmp_path: Path) -> None:
    """Python tells a change by the second and the size: one of the same length, at once, is none to it."""
    file = tmp_path / "a.py"
    file.write_text("x = 1")
    py_compile.compile(str(file))
    forget_bytecode([file, tmp_path / "missing.py"])
    assert not Path(cache_from_source(str(file))).exists()


def test_ctrl_c_in_the_middle_of_a_restart_ends_all_processes(tmp_path: Path) -> None:
    with reloaded(tmp_path) as project:
        app = project.app
        processes = descendants(app.process.pid)
        project.edit(PLAIN, "+ 2 * request.amount")
        project.wait_for("reloading")
        processes |= descendants(app.process.pid)
        assert app.stop(by=signal.SIGINT) == 0
        assert project.wait_for("stopped", "not reloaded")["event"] == "stopped"
        # A process that was about to become a shard ends by itself, once the line to its supervisor is closed.
        asyncio.run(eventually(lambda: not any(map(is_running, processes))))


@contextmanager
def failing_project(folder: Path) -> Iterator[Project]:
    """One whose code cannot be imported as it is started."""
    new.create("shop", folder, generates=True)
    project = folder / "shop"
    settings = project / "onelane.toml"
    settings.write_text(settings.read_text().replace(":50051", ":0").replace("shards = 2", "shards = 1"))
    service = project / "service.py"
    service.write_text(service.read_text() + "1 / 0\n")
    command = [sys.executable, "-m", "onelane", "up", "--reload", "--admin", "127.0.0.1:0", "--json"]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=project) as process,
        ended(Project(project, RunningApp(process, folder / "log"))) as failing,
    ):
        yield failing


def test_a_first_start_that_fails_is_told_and_tried_again_once_a_file_has_changed(tmp_path: Path) -> None:
    with failing_project(tmp_path) as project:
        assert "ZeroDivisionError" in project.wait_for("not started")["reason"]
        assert not descendants(project.app.process.pid)
        project.edit("shards = 1", "shardz = 1", "onelane.toml")
        assert "did you mean 'shards'?" in project.wait_for("not started")["reason"]
        assert not descendants(project.app.process.pid)
        project.edit("shardz = 1", "shards = 1", "onelane.toml")
        assert "ZeroDivisionError" in project.wait_for("not started")["reason"]
        project.edit("1 / 0\n", "")
        project.app.listen["shop"] = project.wait_for("app ready")["listen"]
        assert project.add(1) == 1


def test_ctrl_c_ends_what_waits_for_a_change(tmp_path: Path) -> None:
    with failing_project(tmp_path) as project:
        project.wait_for("not started")
        project.app.process.send_signal(signal.SIGINT)
        project.wait_for("stopped")
        assert project.app.process.wait(BOUND_S) == 0
