"""The image of deploy/ is built and run without an engine: by buildah, on a base that tests/image/build.sh makes.

A container by chroot: the network and the processes are the machine's own, so the ports are set here, and its main
process is looked for among the machine's. All else, the user, the environment and the command, is the image's.
"""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import tools
from tests.running_app import ROOT, RunningApp

# Compiling it takes two minutes on two cores, and on a busy machine many.
pytestmark = [pytest.mark.image, pytest.mark.slow, pytest.mark.timeout(1800)]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
PIPS_SETTINGS = [Path(os.environ.get("PIP_CONFIG_FILE", "/etc/pip.conf")), Path("/etc/ssl/certs")]
"""How pip reaches an index on this machine."""
ANY_PORT = {f"ONELANE_APPS__{app}__LISTEN": "127.0.0.1:0" for app in ("LOBBY", "PROFILE", "LEADERBOARD")}
ANY_PORT |= {"ONELANE_ADMIN": "127.0.0.1:0"}


class Image:
    """An image in the store of a launcher of buildah."""

    def __init__(self, buildah: str, name: str) -> None:
        self._buildah = buildah
        self.name = name

    def buildah(self, *arguments: str) -> str:
        run = subprocess.run([self._buildah, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout.strip()

    def command_in(self, container: str, *command: str, **environment: str) -> list[str]:
        variables = [f"--env={name}={value}" for name, value in environment.items()]
        return [self._buildah, "run", "--isolation", "chroot", *variables, container, "--", *command]

    def config(self) -> dict[str, Any]:
        inspected = json.loads(self.buildah("inspect", "--type", "image", self.name))
        config: dict[str, Any] = inspected["Docker"]["config"]
        return config


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    image = Image(tools.image(), f"localhost/onelane-test-{os.getpid()}")
    for base in set(re.findall(r"^FROM (\S+)", DOCKERFILE.read_text(), re.MULTILINE)):
        image.buildah("tag", "localhost/base", f"docker.io/library/{base}")
    mounts = [f"--volume={path}:{path}:ro" for path in PIPS_SETTINGS if path.exists()]
    options = ["--isolation", "chroot", "--pull-never", "--format", "docker", *mounts]
    image.buildah("bud", *options, "--file", str(DOCKERFILE), "--tag", image.name, ".")
    yield image
    image.buildah("rmi", image.name)


@pytest.fixture(scope="module")
def container(image: Image) -> Iterator[str]:
    name = image.buildah("from", "--pull-never", image.name)
    yield name
    image.buildah("rm", name)


@pytest.fixture
def arena(image: Image, container: str, tmp_path: Path) -> Iterator[RunningApp]:
    """The image's own command, on any ports."""
    log = tmp_path / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            image.command_in(container, *image.config()["Cmd"], **ANY_PORT),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    app = RunningApp(process, log)
    with process:
        try:
            app.wait_ready()
            yield app
            stop(app)
        finally:
            process.kill()


def supervisor_of(arena: RunningApp) -> int:
    """The process id of the container's main process, below those of buildah."""
    pid = arena.process.pid
    while Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0] != "/venv/bin/python":
        # Each thread has children of its own.
        tasks = Path(f"/proc/{pid}/task").iterdir()
        (pid,) = [int(text) for task in tasks for text in (task / "children").read_text().split()]
    return pid


def stop(arena: RunningApp) -> int:
    """Ask the container to drain, as an engine does: buildah itself does not pass a signal on. Its exit code."""
    if arena.process.poll() is None:
        os.kill(supervisor_of(arena), signal.SIGTERM)
    # As long as `onelane check` says that it may take.
    return arena.process.wait(80)


def test_the_image_runs_as_a_user_who_owns_nothing_but_the_data(image: Image, container: str) -> None:
    assert image.config()["User"] == "onelane"
    look = "id -u; touch /data/x && rm /data/x && echo data; touch /venv/x /app/x /etc/x 2>/dev/null || echo no more"
    run = subprocess.run(image.command_in(container, "sh", "-c", look), capture_output=True, text=True, check=True)
    uid, *writable = run.stdout.split("\n")
    assert int(uid) > 0
    assert writable == ["data", "no more", ""]


def test_the_image_has_what_serves_and_nothing_that_builds(image: Image, container: str) -> None:
    look = "pip list --format freeze; command -v gcc cc pkg-config || echo no compiler"
    run = subprocess.run(image.command_in(container, "sh", "-c", look), capture_output=True, text=True, check=True)
    packages = {line.partition("==")[0] for line in run.stdout.splitlines()}
    assert "no compiler" in run.stdout
    assert packages >= {"onelane", "grpcio"}
    assert packages & {"grpcio-tools", "mypy", "pytest", "cython"} == set()


def test_every_shard_of_the_arena_gets_ready_in_a_container(arena: RunningApp) -> None:
    apps = arena.status()["apps"]
    states = [shard["state"] for app in apps.values() for shard in app["shards"]]
    assert (len(apps), states) == (3, ["ready"] * 6)


def test_the_health_check_passes_while_the_container_serves_and_then_fails(
    image: Image, container: str, arena: RunningApp
) -> None:
    kind, *check = image.config()["Healthcheck"]["Test"]
    assert kind == "CMD"
    port = arena.admin.rpartition(":")[2]
    command = image.command_in(container, *(text.replace(":9464", f":{port}") for text in check))
    assert subprocess.run(command, capture_output=True, text=True).returncode == 0
    assert stop(arena) == 0, arena.log.read_text()
    assert subprocess.run(command, capture_output=True, text=True).returncode != 0


def test_the_signal_of_the_image_drains_the_container(image: Image, arena: RunningApp) -> None:
    assert image.config()["StopSignal"] == "SIGTERM"
    assert Path(f"/proc/{supervisor_of(arena)}").stat().st_uid > 0
    assert stop(arena) == 0, arena.log.read_text()
    assert "drain" in arena.log.read_text()
