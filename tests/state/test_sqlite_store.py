"""The files of the store `sqlite`: shared by two lives, in the way of each other, missing, full, and not ours."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from onelane.errors import StoreRefused, StoreUnavailable
from onelane.state.sqlite_store import SqliteStore
from onelane.state.store import scan

from tests.bounds import BOUND_S
from tests.running_app import ROOT
from tests.state.places import AT, StorePlace, cart, full, write

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path) -> Iterator[StorePlace]:
    place = StorePlace("sqlite", tmp_path / "state")
    yield place
    place.close()


def path_in(place: StorePlace) -> Path:
    return place.folder / "lobby" / "lobby-0.sqlite"


def test_a_new_file_that_another_process_is_setting_up_is_waited_for(
    place: StorePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path_in(place).parent.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(path_in(place), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(time, "sleep", lambda _: other.execute("COMMIT"))
        place.open(patience_s=1.0).commit([write("k", b"1")], at=AT)


def test_only_its_user_may_read_the_files(place: StorePlace) -> None:
    place.open().commit([write("k", b"1")], at=AT)
    assert {oct(path.stat().st_mode & 0o777) for path in path_in(place).parent.iterdir()} == {"0o600"}
    assert oct(path_in(place).parent.stat().st_mode & 0o777) == "0o700"


def test_a_locked_file_is_unavailable_after_the_patience_and_back_with_the_lock(place: StorePlace) -> None:
    store = place.open(patience_s=0.05)
    with contextlib.closing(sqlite3.connect(path_in(place), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match=r"lobby-0.sqlite: is locked by another process"):
            store.commit([write("k", b"1")], at=AT)
        with pytest.raises(StoreUnavailable, match="is locked"):
            place.open(life=2, patience_s=0.05)
        assert store.read(["k"]) == {}
    store.commit([write("k", b"2")], at=AT)
    assert store.read(["k"])["k"].rows == (cart(b"2"),)


def test_a_full_disk_changes_nothing_and_the_store_works_again_when_there_is_space(place: StorePlace) -> None:
    store = place.open()
    assert isinstance(store, SqliteStore)
    store.commit([write("k", b"1")], at=AT)
    database = store._database
    assert database is not None
    database.execute("PRAGMA max_page_count=40")
    with pytest.raises(StoreUnavailable, match="the disk is full"):
        store.commit([write("k", b"2"), write("l", bytes(10**6))], at=AT)
    assert next(iter(scan(store, limit=1))).rows == (cart(b"1"),)
    database.execute("PRAGMA max_page_count=100000")
    store.commit([write("k", b"3"), write("l", bytes(10**6))], at=AT)
    assert store.read(["k"])["k"].rows == (cart(b"3"),)


def test_a_file_that_may_not_grow_any_more_changes_nothing_either(place: StorePlace) -> None:
    """The file system's own refusal, not SQLite's: a write fails half-way."""
    script = f"""
import resource, signal
from pathlib import Path
from onelane.errors import StoreUnavailable
from tests.state.places import StorePlace, write
store = StorePlace("sqlite", Path({str(place.folder)!r})).open()
store.commit([write("k", b"1")], at=0.0)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
try:
    store.commit([write("k", b"2"), write("l", bytes(10**6))], at=0.0)
except StoreUnavailable as error:
    print(error)
print(store.read(["k"])["k"].rows[0].value)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.commit([write("l", b"3")], at=0.0)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=BOUND_S)
    assert done.returncode == 0, done.stderr
    assert "the disk" in done.stdout
    assert done.stdout.endswith("b'1'\n")
    assert {state.key: state.rows[0].value for state in scan(place.open())} == {"k": b"1", "l": b"3"}


def test_a_removed_file_is_not_written_to_and_one_that_is_put_back_is(place: StorePlace) -> None:
    store = place.open()
    store.commit([write("k", b"1")], at=AT)
    aside = place.folder.with_name("aside")
    place.folder.rename(aside)
    with pytest.raises(StoreUnavailable, match=r"cannot be read any more: No such file"):
        store.commit([write("k", b"2")], at=AT)
    assert not place.folder.exists()
    aside.rename(place.folder)
    store.commit([write("l", b"3")], at=AT)
    assert [state.rows[0].value for state in scan(place.open(life=2))] == [b"1", b"3"]


def test_a_file_that_another_has_replaced_is_opened_anew(place: StorePlace) -> None:
    store = place.open()
    store.commit([write("k", b"1")], at=AT)
    copy = place.folder.with_name("copy.sqlite")
    store.backup(copy)
    store.commit([write("k", b"2")], at=AT)
    for name in ("lobby-0.sqlite", "lobby-0.sqlite-wal", "lobby-0.sqlite-shm"):
        path_in(place).with_name(name).unlink()
    shutil.move(copy, path_in(place))
    assert store.read(["k"])["k"].rows == (cart(b"1"),)


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may write everywhere, no setpriv")
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from onelane.errors import StoreUnavailable
from tests.state.places import StorePlace
try:
    StorePlace("sqlite", Path({str(tmp_path / "new")!r})).open()
except StoreUnavailable as error:
    print(error)
"""
    tmp_path.chmod(0o555)
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*drop, sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=BOUND_S
    )
    tmp_path.chmod(0o755)
    assert done.stdout == f"{tmp_path}/new/lobby/lobby-0.sqlite: cannot be opened: Permission denied\n", done.stderr


def test_the_file_of_another_app_is_refused_by_name(place: StorePlace) -> None:
    place.open(app="lobby").close()
    path_in(place).parent.rename(place.folder / "shop")
    with pytest.raises(StoreRefused, match=r"lobby-0.sqlite: the state of the app 'lobby', expected 'shop'"):
        place.open(app="shop")


def test_the_file_of_a_newer_release_is_refused_and_left_alone(place: StorePlace) -> None:
    place.open().close()
    with contextlib.closing(sqlite3.connect(path_in(place))) as database:
        database.execute("PRAGMA user_version=7")
    before = path_in(place).read_bytes()
    with pytest.raises(StoreRefused, match="schema version 7 of a newer release, expected version 1"):
        place.open()
    assert path_in(place).read_bytes() == before


def test_a_file_of_another_program_or_of_no_database_is_refused_and_left_alone(place: StorePlace) -> None:
    path_in(place).parent.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(path_in(place))) as database:
        database.execute("CREATE TABLE bookmarks (url)")
    with pytest.raises(StoreRefused, match="a SQLite file of another program, expected one of onelane's"):
        place.open()
    path_in(place).write_bytes(b"no database\n" * 1000)
    with pytest.raises(StoreRefused, match="file is not a database, expected a sound file"):
        place.open()
    assert path_in(place).read_bytes() == b"no database\n" * 1000


def test_a_damaged_file_is_refused_when_its_damage_is_read(place: StorePlace) -> None:
    store = place.open()
    store.commit([write(f"k{number}", bytes(1000)) for number in range(300)], at=AT)
    store.close()
    data = bytearray(path_in(place).read_bytes())
    data[8192:] = b"\xff" * (len(data) - 8192)
    path_in(place).write_bytes(data)
    with pytest.raises(StoreRefused, match="SQLite says: database disk image is malformed"):
        list(scan(place.open()))


def test_a_backup_taken_while_another_life_writes_is_whole(place: StorePlace, tmp_path: Path) -> None:
    store = place.open()
    store.commit([full("k"), write("l", b"1")], at=AT)
    copy = StorePlace("sqlite", tmp_path / "copy")
    path_in(copy).parent.mkdir(parents=True)
    store.backup(path_in(copy))
    place.open(life=2).commit([write("l", b"2")], at=AT)
    restored = copy.open(life=3)
    assert restored.read(["k", "l"]) == store.read(["k"]) | {"l": restored.read(["l"])["l"]}
    assert restored.read(["l"])["l"].rows == (cart(b"1"),)
    with pytest.raises(StoreRefused, match="a file of this name, expected the name of a new file"):
        store.backup(path_in(copy))
    copy.close()
