"""`onelane state`: what is stored is changed, copied and put back while the app does not run, and never beside it."""

import asyncio
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import msgspec
import pytest
from onelane.core.state_settings import StateSettings
from onelane.state.store import KeyWrite, RememberedAnswer
from onelane.state.stored import stored_state

from tests.bounds import BOUND_S
from tests.cli.stored import SERVICE, lines, row, run, with_code, write
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.running_app import RunningApp, echo, running

CART = msgspec.msgpack.encode({"items": {"apple": 2}, "note": "ä"})
METHOD = "/echo.v1.Echo/Unary"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a file of an app that has stored one cart."""
    for name in [name for name in os.environ if name.startswith(("OTEL_", "ONELANE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    toml = echo(2).replace("tests.echo.service:Echo", SERVICE)
    (tmp_path / "onelane.toml").write_text(f'admin = "127.0.0.1:0"\n{toml}')
    write(KeyWrite("a", 1, (row("carts", CART, version=2),), (RememberedAnswer("id", b"d", b"answer", 1.0),)))
    return tmp_path


def test_what_was_exported_is_imported_as_it_was(folder: Path) -> None:
    write(
        KeyWrite("a%20b", 1, (row("requests", EchoRequest(text="x").SerializeToString(), spelled=b"sa b",
                                  codec="protobuf"),)),
        KeyWrite("7", 1, (row("anything", msgspec.msgpack.encode(b"\xff"), spelled=b"i7"),)),
        KeyWrite("b", 1, (row("blobs", b"oof", spelled=b"bb", codec="reversed"),)),
        KeyWrite("newer", 1, (row("carts", CART, spelled=b"snewer", version=9),)),
        shard="echo-1",
    )  # fmt: skip
    exported = with_code("export", "echo")
    before = lines(run("export", "echo", "--raw"))
    assert len(before) == 5
    Path("state").rename("elsewhere")
    assert with_code("import", "echo", text=exported.stdout).stdout == "wrote 5 entries of 5 keys\n"
    assert lines(run("export", "echo", "--raw")) == before


def test_an_imported_value_counts_before_all_that_is_stored(folder: Path) -> None:
    """Of two files with the key, and in the one in which a shard looks first."""
    write(KeyWrite("a", 7, (row("carts", CART, version=2),)), shard="echo-1", life=5)
    (cart,) = lines(with_code("get", "echo", "carts", "a"))
    cart["value"]["items"]["pear"] = 1
    Path("edited").write_text(json.dumps(cart))
    assert with_code("import", "echo", "edited").exit_code == 0
    assert lines(with_code("get", "echo", "carts", "a"))[0]["value"]["items"] == {"apple": 2, "pear": 1}
    with stored_state(StateSettings(), "echo") as stored:
        assert stored.newest() == (7, 6)
        assert len(stored.stores["echo-1"].read(["a"])["a"].rows) == 1


def test_an_import_with_a_fault_writes_nothing_and_names_each_line(folder: Path) -> None:
    wrong = [
        {"dict": "carts", "key": "new", "value": {"items": {}}},
        {"dict": "carts", "key": "new", "value": {"note": 7}},
        {"dict": "wishes", "key": "new", "value": 1},
        {"dict": "carts", "key": "new", "value": {}, "version": 1},
        {"dict": "carts", "key": "a b", "spelled": "a b", "value": {}},
        {"dict": "blobs", "key": "new", "value": "x"},
        {"dict": "carts", "key": "new", "value": {}, "data": ""},
        {"dict": "carts", "key": "new", "data": "gA=="},
        {"dict": "carts", "key": "new", "data": "AQ==", "codec": "msgpack", "version": 2},
        {"dict": "carts", "key": "new", "value": {}},
        [],
    ]
    text = "\n".join(map(json.dumps, wrong)) + "\nno json\n"
    result = with_code("import", "echo", text=text)
    assert result.exit_code == 3
    faults = dict(line.strip().split(": ", 1) for line in result.stderr.splitlines() if line.startswith("  line"))
    assert [int(place.removeprefix("line ")) for place in faults] == list(range(2, 13))
    assert "Expected `str`, got `int` - at `$.note`" in faults["line 2"]
    assert "declare no durable dict 'wishes'" in faults["line 3"]
    assert "of version 1, but this release writes version 2" in faults["line 4"]
    assert "the canonical text" in faults["line 5"]
    assert "only data can be stored" in faults["line 6"]
    assert "either value or data" in faults["line 7"]
    assert "the codec and the version" in faults["line 8"]
    assert "a second entry of 'carts' for the key 'new'" in faults["line 10"]
    assert lines(run("ls", "echo")) == [{"dict": "carts", "entries": 1}]


def test_rm_removes_an_entry_and_no_other(folder: Path) -> None:
    write(KeyWrite("a", 1, (row("blobs", b"", codec="reversed"),)), KeyWrite("b", 1, (row("carts", CART),)))
    assert run("rm", "echo", "carts").exit_code == 2
    assert run("rm", "echo", "carts", "c").exit_code == 1
    assert run("rm", "echo", "carts", "a").stdout == "removed 1 entries of 'carts'\n"
    assert [(line["dict"], line["key"]) for line in lines(run("export", "echo", "--raw"))] == [
        ("blobs", "a"),
        ("carts", "b"),
    ]
    assert run("rm", "echo", "carts", "--all").exit_code == 0
    assert lines(run("ls", "echo")) == [{"dict": "blobs", "entries": 1}]


def test_a_restored_backup_has_all_that_was_stored_and_the_former_files_stay(folder: Path) -> None:
    assert run("backup", "echo", "copy").stdout == "copy has the state of echo-0\n"
    assert "something of this name" in run("backup", "echo", "copy").stderr
    write(KeyWrite("a", 2), KeyWrite("b", 2, (row("carts", CART),)), shard="echo-1")
    restored = run("restore", "echo", "copy").stdout
    assert restored == "restored echo from copy; the former files are in state/echo.before-restore-1\n"
    with stored_state(StateSettings(), "echo") as stored:
        (state,) = stored.states()
    assert (state.key, len(state.rows), len(state.answers)) == ("a", 1, 1)
    assert {path.name for path in (folder / "state/echo.before-restore-1").glob("*.sqlite")} == {
        "echo-0.sqlite",
        "echo-1.sqlite",
    }


def test_what_is_no_sound_backup_of_the_app_changes_nothing(folder: Path) -> None:
    (folder / "empty").mkdir()
    assert "no file of a backup" in run("restore", "echo", "empty").stderr
    run("backup", "echo", "copy")
    with sqlite3.connect("copy/echo-0.sqlite") as database:
        database.execute("UPDATE meta SET value = 'lobby' WHERE name = 'app'")
    database.close()
    assert "the state of the app 'lobby', expected 'echo'" in run("restore", "echo", "copy").stderr
    Path("copy/echo-0.sqlite").write_bytes(b"no database" * 1000)
    refused = run("restore", "echo", "copy")
    assert (refused.exit_code, "file is not a database" in refused.stderr) == (1, True)
    assert os.listdir("state") == ["echo"]
    assert lines(run("ls", "echo")) == [{"dict": "carts", "entries": 1}]


def test_of_postgresql_its_own_tools_are_named(folder: Path) -> None:
    toml = echo(1, "[apps.echo.state]", 'store = "postgresql"', 'dsn = "postgresql://nobody:secret@127.0.0.1:1/x"')
    (folder / "onelane.toml").write_text(toml)
    for command in ("backup", "restore"):
        refused = run(command, "echo", str(folder / "new") if command == "backup" else str(folder))
        assert refused.exit_code == 1
        assert refused.stderr == (
            "onelane: apps.echo.state: the store 'postgresql', expected sqlite: use pg_dump and pg_restore\n"
        )
    down = run("ls", "echo")
    assert (down.exit_code, "secret" in down.stderr) == (1, False)


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[RunningApp]:
    """Two shards that count in a durable dict."""
    toml = echo(2).replace("tests.echo.service:Echo", "tests.state.kept_service:Kept")
    with running(tmp_path, toml) as cluster:
        yield cluster


async def add(cluster: RunningApp, *keys: str) -> list[int]:
    async with grpc.aio.insecure_channel(cluster.listen["echo"]) as channel:
        unary = channel.unary_unary(METHOD, EchoRequest.SerializeToString, EchoReply.FromString)
        return [
            reply.seen
            for reply in await asyncio.gather(*(unary(EchoRequest(key=key), timeout=BOUND_S) for key in keys))
        ]


@pytest.mark.slow
async def test_while_the_app_runs_its_state_can_be_read_and_copied_and_not_be_changed(
    counting: RunningApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = counting.log.parent
    monkeypatch.chdir(folder)
    keys = [f"key-{number}" for number in range(20)]
    await add(counting, *keys)
    (line,) = lines(await asyncio.to_thread(with_code, "get", "echo", "counts", "key-3"))
    assert (line["key"], line["value"]) == ("key-3", 1)
    assert lines(await asyncio.to_thread(run, "ls", "echo")) == [{"dict": "counts", "entries": 20}]
    assert run("backup", "echo", "copy").exit_code == 0
    for command in (["import", "echo"], ["rm", "echo", "counts", "key-3"], ["restore", "echo", "copy"]):
        refused = run(*command)
        assert refused.exit_code == 1
        assert "onelane: echo runs: a process has state/echo/echo-0.sqlite open. Stop it first" in refused.stderr
    assert await add(counting, *keys) == [2] * 20
    counting.stop()
    assert run("restore", "echo", "copy").exit_code == 0
    assert run("rm", "echo", "counts", "key-3").exit_code == 0
    assert lines(run("ls", "echo")) == [{"dict": "counts", "entries": 19}]
    # The next start has other ports, so keys have other owners; and its lives may write what the commands have written.
    with running(folder, (folder / "onelane.toml").read_text().partition("\n")[2]) as cluster:
        assert await add(cluster, "key-3", "key-4") == [1, 2]
