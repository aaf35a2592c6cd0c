"""The folder of the shards' Unix sockets is made where it can be, and removed after a supervisor that was killed."""

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from onelane.supervisor import socket_folder as module
from onelane.supervisor.socket_folder import NoSocketFolder, socket_folder

from tests.bounds import BOUND_S
from tests.conftest import Where
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import echo, eventually, http_request, running

NAME = "echo-0.sock.steer"


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a short path, which pytest's `tmp_path` has not: a socket's has 107 bytes at most."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


def folders(place: Path) -> list[Path]:
    return sorted(place.glob("onelane-*"))


def test_only_this_user_may_enter_the_folder_and_it_is_removed_at_the_end(place: Path) -> None:
    with socket_folder({"RUNTIME_DIRECTORY": f"{place}:/else"}, NAME) as folder:
        assert (folder.parent, folder.stat().st_mode & 0o777) == (place, 0o700)
    assert folders(place) == []


def test_a_place_that_cannot_hold_the_folder_is_passed_over_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    with socket_folder({"RUNTIME_DIRECTORY": "/run/missing", "TMPDIR": str(long)}, NAME) as folder:
        assert folder.parent == Path("/tmp")
    assert "/run/missing (RUNTIME_DIRECTORY): No such file or directory" in caplog.text
    assert "(TMPDIR): too long, a socket's path would have" in caplog.text


def test_where_no_place_can_hold_it_the_fault_of_each_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(NoSocketFolder, match=r"missing \(TMPDIR\): too long.*; /tmp: too long.*; /var/tmp: too long"),
        socket_folder({"TMPDIR": str(tmp_path / "missing")}, "x" * 100),
    ):
        pass


def test_the_folder_of_a_running_supervisor_and_those_of_others_are_left_alone(place: Path) -> None:
    mine = place / "onelane-data"
    mine.mkdir()
    (mine / "notes").write_text("of the user")
    (place / "onelane-link").symlink_to(mine)
    environment = {"TMPDIR": str(place)}
    with socket_folder(environment, NAME) as running_folder, socket_folder(environment, NAME):
        assert running_folder in folders(place)
    assert (mine / "notes").read_text() == "of the user"


def test_a_file_that_is_no_socket_is_never_removed_with_an_abandoned_folder(place: Path) -> None:
    abandoned = place / "onelane-abandoned"
    abandoned.mkdir()
    (abandoned / module.LOCK).touch()
    (abandoned / "notes").write_text("of the user")
    with socket_folder({"TMPDIR": str(place)}, NAME):
        assert (abandoned / "notes").read_text() == "of the user"


@pytest.mark.slow
def test_the_folder_of_a_killed_supervisor_is_removed_by_the_next_one(tmp_path: Path, place: Path) -> None:
    with running(tmp_path, echo(1), RUNTIME_DIRECTORY=str(place)) as killed:
        killed.stop(by=signal.SIGKILL)
    (abandoned,) = folders(place)
    with running(tmp_path, echo(1), RUNTIME_DIRECTORY=str(place)):
        assert len(folders(place)) == 1
        assert not abandoned.exists()
    assert folders(place) == []


@pytest.mark.slow
def test_an_app_runs_with_a_long_tmpdir_and_without_its_runtime_directory(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    with running(tmp_path, echo(1), TMPDIR=str(long), RUNTIME_DIRECTORY=str(tmp_path / "missing")) as cluster:
        assert cluster.shards()[0]["state"] == "ready"


@pytest.mark.slow
@pytest.mark.parametrize("listener", ["native", "grpcio"])
async def test_where_the_folder_is_removed_shards_restart_and_calls_are_forwarded_as_ever(
    tmp_path: Path, listener: str
) -> None:
    """As cleaners of temporary files do it."""
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as name,
        running(tmp_path, echo(2, f'listener = "{listener}"'), RUNTIME_DIRECTORY=name) as cluster,
    ):
        where = Where(cluster)
        (folder,) = folders(Path(name))
        shutil.rmtree(folder)
        os.kill(cluster.shards()[0]["pid"], signal.SIGKILL)
        await eventually(lambda: cluster.shards()[0]["restarts"] and cluster.shards()[0]["state"] == "ready")
        for path in (folder / "echo-0.sock", folder / "echo-1.sock"):
            await eventually(path.exists)
        for key in map(str, range(20)):
            reply = await where.away(key).Unary(EchoRequest(key=key), wait_for_ready=True, timeout=BOUND_S)
            assert reply.shard == where.owner_of(key)
        assert cluster.shards()[0]["restarts"] == 1
        await where.close()


@pytest.mark.slow
async def test_a_shard_whose_folder_was_removed_is_restarted_without_a_refused_forward(tmp_path: Path) -> None:
    """The shard listens on a socket of its own by then: its siblings' calls must wait in one of the supervisor's."""
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as name,
        running(tmp_path, echo(2, "drain_s = 0.5"), RUNTIME_DIRECTORY=name) as cluster,
    ):
        where, (folder,) = Where(cluster), folders(Path(name))
        keys = where.keys_of("echo-0")
        held_key, key = next(keys), next(keys)
        shutil.rmtree(folder)
        await eventually((folder / "echo-0.sock").exists)
        pid = cluster.shards()[0]["pid"]
        # It keeps the process until its grace is over, while nobody accepts any more.
        held = where.away(held_key).Hold(EchoRequest(key=held_key), timeout=BOUND_S)
        await eventually(cluster.in_flight)
        assert http_request(f"http://{cluster.admin}/shards/echo/0/restart", method="POST", X_Onelane="1")[0] == 200
        while (shard := (await asyncio.to_thread(cluster.shards))[0])["pid"] == pid or shard["state"] != "ready":
            reply = await where.away(key).Unary(EchoRequest(key=key), timeout=BOUND_S)
            assert reply.shard == "echo-0"
        held.cancel()
        await where.close()
