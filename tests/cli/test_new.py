"""`onelane new`: what it creates runs and passes its test as it is created; what it refuses leaves nothing behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from onelane.cli import new
from onelane.cli.main import main
from onelane.cli.project import fault_of_name
from onelane.cli.protoc import generate
from onelane.errors import Invalid

from tests.bounds import BOUND_S
from tests.running_app import running_command

pytestmark = pytest.mark.slow


def run_in(folder: Path, *command: str) -> str:
    """What a program prints that must succeed there."""
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=BOUND_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_new_project_passes_its_test_runs_and_answers_its_client(tmp_path: Path) -> None:
    created = json.loads(run_in(tmp_path, "-m", "onelane", "new", "my_shop", "--json"))
    project = tmp_path / "my_shop"
    assert created["generated"]
    assert [file for file in created["created"] if not (tmp_path / file).is_file()] == []
    assert "2 passed" in run_in(project, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    settings = project / "onelane.toml"
    settings.write_text(settings.read_text().replace("127.0.0.1:50051", "127.0.0.1:0"))
    with running_command("up", "--admin", "127.0.0.1:0", cwd=project, log=tmp_path / "log") as app:
        assert run_in(project, "client.py", app.listen["my-shop"]) == "apples: 2\n"


def test_onelane_proto_generates_what_new_leaves_out_where_the_tools_lack(tmp_path: Path) -> None:
    new.create("shop", tmp_path, generates=False)
    project = tmp_path / "shop"
    assert not (project / "shop").exists()
    generate([project / "proto"], root=project / "proto", out=project)
    assert "shop_pb2_grpc.py" in {path.name for path in (project / "shop/v1").iterdir()}


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(name: str) -> Result:
    """The command's outcome, which must be a refusal."""
    run = CliRunner().invoke(main, ["new", "--", name])
    assert run.exit_code == 1
    return run


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("my-shop", "expected a Python identifier of lower-case letters, digits and single underscores; did you mean "
                    "'my_shop'?"),
        ("HTTPShop", "did you mean 'http_shop'?"),
        ("größe", "expected a Python identifier"),
        ("9lives", "expected a Python identifier"),
        ("", "expected a Python identifier"),
        ("../shop", "expected a Python identifier"),
        ("shop\n", "expected a Python identifier"),
        ("class", "it is a keyword of Python"),
        ("none", "its service would be None, a keyword of Python"),
        ("json", "it would hide the module 'json'"),
        ("grpc", "it would hide the module 'grpc'"),
        ("service", "a part of the project itself is called so"),
        ("add_request", "a part of the project itself is called so"),
        ("a" * 64, "it has 64 characters, expected at most 63"),
    ],
)  # fmt: skip
def test_a_name_that_cannot_be_imported_is_refused_with_the_reason(empty: Path, name: str, fault: str) -> None:
    assert fault in refused(name).stderr
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize("name", ["a", "shop", "shop2", "my_own_shop", "print", "message", "a" * 63])
def test_a_plain_name_is_allowed(name: str) -> None:
    assert fault_of_name(name) == ""


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_has_the_name_already_is_left_as_it_is(empty: Path, kind: str) -> None:
    place = empty / "shop"
    if kind == "folder":
        place.mkdir()
    elif kind == "file":
        place.touch()
    else:
        place.symlink_to("nowhere")
    assert "shop exists already; choose another name, or remove it first" in refused("shop").stderr
    assert [path.name for path in empty.iterdir()] == ["shop"]
    assert kind != "folder" or list(place.iterdir()) == []


def test_a_project_that_cannot_be_written_whole_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onelane.cli.protoc.generate", fail)
    with pytest.raises(new.NotCreated, match="shop cannot be written: No space left on device"):
        new.create("shop", tmp_path, generates=True)
    with pytest.raises(new.NotCreated, match="cannot be written: No such file"):
        new.create("shop", tmp_path / "missing", generates=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_appears_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def appear(*_: object, **__: object) -> None:
        (tmp_path / "shop").mkdir()
        (tmp_path / "shop" / "mine").touch()

    monkeypatch.setattr("onelane.cli.protoc.generate", appear)
    with pytest.raises((Invalid, new.NotCreated)):
        new.create("shop", tmp_path, generates=True)
    assert [path.name for path in (tmp_path / "shop").iterdir()] == ["mine"]
    assert [path.name for path in tmp_path.iterdir()] == ["shop"]
