"""A supervisor starts above all that its apps have stored, with other shards than wrote it, and alone on its files."""

import asyncio
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from onelane.config import App, parse
from onelane.core.placement import Member, Placement
from onelane.core.state_settings import StateSettings
from onelane.errors import StoreRefused
from onelane.state.sqlite_store import shards_in
from onelane.supervisor.cold_start import ColdStart
from onelane.supervisor.shared_resources import TelemetryOptions
from onelane.supervisor.supervisor import Supervisor

from tests.bounds import BOUND_S
from tests.state.places import AT, StorePlace, write
from tests.supervisor.fake_launcher import FakeLauncher


def cold_start(folder: Path, shards: int = 2, **options: Any) -> ColdStart:
    members = tuple(Member(f"lobby-{index}", f"127.0.0.1:{7000 + index}", "") for index in range(shards))
    settings = App(services=("a:B",), listen="127.0.0.1:7000", state=StateSettings(folder=folder))
    return ColdStart("lobby", settings, Placement(1, members), **options)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[StorePlace]:
    """Two files, in which the highest epoch is 70."""
    place = StorePlace("sqlite", tmp_path)
    for index in range(2):
        place.open(shard=f"lobby-{index}").commit([write(f"k{index}", b"1", epoch=60 + 10 * index)], at=AT)
    yield place
    place.close()


def test_an_app_that_has_stored_nothing_makes_no_file_and_imports_no_store(tmp_path: Path) -> None:
    modules = {name for name in sys.modules if name.startswith("onelane.state.sqlite")}
    for name in modules:
        del sys.modules[name]
    start = cold_start(tmp_path)
    assert start.newest_epoch() == 0
    start.lock()
    assert not {name for name in sys.modules if name.startswith("onelane.state.sqlite")}
    assert list(tmp_path.iterdir()) == []


def test_the_newest_epoch_is_that_of_any_file(files: StorePlace) -> None:
    start = cold_start(files.folder)
    assert start.newest_epoch() == 70
    start.close()


def test_fewer_shards_get_what_is_in_the_files_of_the_others_and_more_leave_it(files: StorePlace) -> None:
    files.close()
    for shards, expected in ((3, {"lobby-0", "lobby-1"}), (1, {"lobby-0"})):
        start = cold_start(files.folder, shards)
        assert start.newest_epoch() == 70
        start.close()
        assert shards_in(files.folder, "lobby") == expected
    assert sorted(files.open(shard="lobby-0").keys()) == ["k0", "k1"]


def test_a_missing_file_is_an_error_until_it_is_accepted(files: StorePlace) -> None:
    files.close()
    (files.folder / "lobby" / "lobby-1.sqlite").unlink()
    for _ in range(2):
        start = cold_start(files.folder)
        with pytest.raises(StoreRefused, match="no state of lobby-1"):
            start.newest_epoch()
        start.close()
    start = cold_start(files.folder, accepts_missing=True)
    assert start.newest_epoch() == 60
    start.close()


def test_two_supervisors_do_not_share_the_files(files: StorePlace) -> None:
    first, second = cold_start(files.folder), cold_start(files.folder)
    first.newest_epoch()
    with pytest.raises(StoreRefused, match="another supervisor that runs the app on these files"):
        second.newest_epoch()
    first.close()
    second.newest_epoch()
    second.close()


async def test_a_supervisor_that_is_to_end_while_it_settles_ends_and_the_next_start_goes_on(files: StorePlace) -> None:
    """SIGTERM was waited out before, for as long as there are keys."""
    files.close()
    settings = f"""
        [apps.lobby]
        services = ["a:B"]
        listen = "127.0.0.1:0"
        shards = 1
        state = {{ folder = "{files.folder}" }}
    """
    config, launcher = parse(tomllib.loads(settings)), FakeLauncher([])
    supervisor = Supervisor(config, launcher, app_dir="", sinks=[], telemetry=TelemetryOptions())
    supervisor.stop_asked.set()
    await asyncio.wait_for(supervisor.run(), BOUND_S)
    assert launcher.launched == []
    assert shards_in(files.folder, "lobby") == {"lobby-0", "lobby-1"}
    start = cold_start(files.folder, shards=1)
    assert start.newest_epoch() == 70
    start.close()
    assert sorted(files.open(shard="lobby-0").keys()) == ["k0", "k1"]
