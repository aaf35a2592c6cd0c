"""A service's settings are one frozen object, replaced in every shard or in none."""

import os
import signal
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from onelane import config
from onelane.core.placement import Placement
from onelane.errors import BadConfig
from onelane.supervisor.app import AppSupervisor
from onelane.supervisor.reload import FileDifferences, Reloader, ReloadOutcome
from onelane.supervisor.target import scaled

from tests.bounds import BOUND_S
from tests.conftest import Where
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import ROOT, RunningApp, echo, eventually, run_command, running
from tests.supervisor.scripted_shards import ScriptedLauncher, scripted_app

KIND = "tests.echo.settings:EchoSettings"
TYPED = f'config_type = "{KIND}"'


pytestmark = pytest.mark.slow


def rewrite(cluster: RunningApp, toml: str) -> None:
    (cluster.log.parent / "onelane.toml").write_text(f'admin = "127.0.0.1:0"\n{toml}')


def reload(cluster: RunningApp) -> tuple[int, str]:
    """`onelane reload`: its exit code and output."""
    done = run_command("reload", cluster.admin)
    return done.returncode, done.stdout + done.stderr


def test_the_file_is_compared_with_what_runs_and_nothing_is_changed() -> None:
    text = echo(2, "[apps.echo.config]", "limit = 1")
    running_config = config.parse(tomllib.loads(text))
    shared: Any = SimpleNamespace(place=None)
    app = AppSupervisor("echo", running_config.apps["echo"], Placement(1, ()), shared)
    edited = config.parse(tomllib.loads(text.replace("shards = 2", "shards = 3").replace("limit = 1", "limit = 2")))
    differences = Reloader([app], running_config, lambda: edited).compare()
    assert differences == FileDifferences(needs_reload=["echo.limit: 1 → 2", "echo.shards: 2 → 3"])
    assert app.settings.config == {"limit": 1}

    def faulty() -> config.Config:
        raise BadConfig("onelane.toml", ["is not TOML"])

    assert Reloader([app], running_config, faulty).compare() == FileDifferences(faults=["is not TOML"])


async def test_another_number_of_shards_scales_and_the_same_one_leaves_an_app_alone_that_was_scaled_since(
    tmp_path: Path,
) -> None:
    launcher, limits = ScriptedLauncher(), "[apps.echo.config]"
    files = [echo(2, limits, "limit = 1"), echo(3, limits, "limit = 1"), echo(3, limits, "limit = 1")]
    files += [echo(4, limits, "limit = 2"), echo(1, limits, "limit = 1")]
    first, *edited = [config.parse(tomllib.loads(text)) for text in files]
    read = iter(edited)
    async with scripted_app(tmp_path, launcher, 2, config={"limit": 1}) as app:
        reloader = Reloader([app], first, lambda: next(read))
        assert await reloader.reload() == ReloadOutcome(["echo.shards: 2 → 3"])
        await app.changes.reach(scaled(5))
        assert await reloader.reload() == ReloadOutcome()
        assert len(app.shards) == 5
        await app.changes.reach(scaled(2))
        launcher.failing["echo-2"] = "no such module"
        outcome = await reloader.reload()
        assert outcome.faults == ["echo has not changed: shard echo-2 failed to start: no such module"]
        assert app.settings.config == {"limit": 1}
        assert (await reloader.reload()).changed == ["echo.shards: 3 → 1"]


def test_where_the_placement_cannot_change_another_number_of_shards_needs_a_restart() -> None:
    text = echo(2, 'listener = "grpcio"')
    running_config, edited = (config.parse(tomllib.loads(toml)) for toml in (text, text.replace("= 2", "= 3")))
    shared: Any = SimpleNamespace(place=None)
    app = AppSupervisor("echo", running_config.apps["echo"], Placement(1, ()), shared)
    differences = Reloader([app], running_config, lambda: edited).compare()
    assert differences == FileDifferences(needs_restart=["echo.shards: 2 → 3"])


async def configs(where: Where) -> dict[str, tuple[str, str]]:
    """Shard → its settings, and the changes that it was notified of."""
    by_shard: dict[str, tuple[str, str]] = {}
    for number in range(100):
        key = f"k{number}"
        if where.owner_of(key) not in by_shard:
            call: Any = where.home(key).Misbehave(
                EchoRequest(key=key, order="config"), wait_for_ready=True, timeout=BOUND_S
            )
            await call
            trailers = dict(await call.trailing_metadata())
            by_shard[where.owner_of(key)] = (trailers["x-config"], trailers["x-followed"])
    return by_shard


@contextmanager
def two_shards(folder: Path, *arguments: str) -> Iterator[tuple[RunningApp, Where]]:
    """Two shards whose `limit` is 1."""
    toml = echo(2, TYPED, "[apps.echo.config]", "limit = 1")
    with running(folder, toml, *arguments, ONELANE_APPS__ECHO__CONFIG__GREETING="from the environment") as cluster:
        yield cluster, Where(cluster)


@pytest.fixture
async def pair(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[tuple[RunningApp, Where]]:
    arguments = ["--inline"] if getattr(request, "param", "") == "inline" else []
    with two_shards(tmp_path, *arguments) as (cluster, where):
        yield cluster, where
        await where.close()


@pytest.fixture(scope="module")
async def unchanged_pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[RunningApp, Where]]:
    """For tests that leave the settings as they are."""
    with two_shards(tmp_path_factory.mktemp("unchanged")) as (cluster, where):
        yield cluster, where
        await where.close()


FIRST = "EchoSettings(limit=1, greeting='from the environment')"
SECOND = "EchoSettings(limit=2, greeting='from the environment')"


@pytest.mark.parametrize("pair", ["processes", "inline"], indirect=True)
async def test_a_reload_gives_every_shard_the_new_object_and_says_what_changed(pair: tuple[RunningApp, Where]) -> None:
    cluster, where = pair
    assert set((await configs(where)).values()) == {(FIRST, "")}
    rewrite(cluster, echo(2, TYPED, "[apps.echo.config]", "limit = 2"))
    assert reload(cluster) == (0, "changed echo.limit: 1 → 2\n")
    assert set((await configs(where)).values()) == {(SECOND, f"{FIRST}->{SECOND}")}
    assert {shard["config"] for shard in cluster.shards()} == {2}
    assert reload(cluster) == (0, "nothing has changed\n")


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ([TYPED, "[apps.echo.config]", "limit = 0"], "limit: Input should be greater than or equal to 1, seen 0"),
        ([TYPED, "[apps.echo.config]", "limit = 2", "= nonsense"], "is not TOML"),
        (["unknown_setting = 1", TYPED, "[apps.echo.config]", "limit = 2"], "unknown_setting: is not a setting"),
    ],
)
async def test_a_bad_file_changes_nothing(
    unchanged_pair: tuple[RunningApp, Where], lines: list[str], fault: str
) -> None:
    cluster, where = unchanged_pair
    rewrite(cluster, echo(2, *lines))
    code, output = reload(cluster)
    assert code == 3
    assert "nothing was changed" in output
    assert fault in output
    assert set((await configs(where)).values()) == {(FIRST, "")}
    assert {shard["config"] for shard in cluster.shards()} == {1}


async def test_a_change_that_needs_a_restart_is_reported(pair: tuple[RunningApp, Where]) -> None:
    cluster, where = pair
    rewrite(cluster, echo(2, TYPED, "drain_s = 3", "stop_s = 7", "[apps.echo.config]", "limit = 2"))
    code, output = reload(cluster)
    assert (code, output.splitlines()) == (
        0,
        [
            "changed echo.limit: 1 → 2",
            "the file differs from what runs: echo.drain_s: 10.0 → 3.0 (needs a restart of `onelane up`)",
            "the file differs from what runs: echo.stop_s: 5.0 → 7.0 (needs a restart of `onelane up`)",
        ],
    )
    assert set((await configs(where)).values()) == {(SECOND, f"{FIRST}->{SECOND}")}


async def test_sighup_reloads_and_a_restarted_shard_has_the_newest_settings(pair: tuple[RunningApp, Where]) -> None:
    cluster, where = pair
    rewrite(cluster, echo(2, TYPED, "[apps.echo.config]", "limit = 2"))
    cluster.process.send_signal(signal.SIGHUP)
    await eventually(lambda: "reload.changed echo.limit: 1 → 2" in cluster.log.read_text())
    await eventually(lambda: {shard["config"] for shard in cluster.shards()} == {2})
    killed = cluster.shards()[0]
    os.kill(killed["pid"], signal.SIGKILL)
    await eventually(lambda: cluster.shards()[0]["restarts"] == 1 and cluster.shards()[0]["state"] == "ready")
    assert {config for config, _ in (await configs(where)).values()} == {SECOND}


def test_settings_that_do_not_fit_stop_the_start(tmp_path: Path) -> None:
    file = tmp_path / "onelane.toml"
    file.write_text(f'admin = "127.0.0.1:0"\n{echo(1, TYPED, "[apps.echo.config]", "limit = 0")}')
    command = [sys.executable, "-m", "onelane", "up", str(file), "--app-dir", str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S, check=False)
    assert done.returncode != 0
    assert "limit: Input should be greater than or equal to 1, seen 0" in done.stderr


def test_a_reload_by_a_page_of_another_origin_is_refused(unchanged_pair: tuple[RunningApp, Where]) -> None:
    request = urllib.request.Request(f"http://{unchanged_pair[0].admin}/reload", method="POST")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request, timeout=BOUND_S)
