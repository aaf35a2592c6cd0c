"""`onelane state`: what is stored can be seen, checked and changed without the app."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from onelane.state.store import KeyWrite

from tests.cli.stored import SERVICE, lines, row, run, with_code, write
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import ROOT, echo

CART = msgspec.msgpack.encode({"items": {"apple": 2}, "note": "ä"})


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a file of an app that has run with two shards."""
    for name in [name for name in os.environ if name.startswith(("OTEL_", "ONELANE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "onelane.toml").write_text(echo(2).replace("tests.echo.service:Echo", SERVICE))
    return tmp_path


def test_ls_counts_the_entries_of_each_dict_and_lists_those_of_one() -> None:
    write(KeyWrite("a", 1, (row("carts", CART, version=2), row("blobs", b"ba", codec="reversed"))))
    write(KeyWrite("7", 1, (row("carts", CART, spelled=b"i7"),)), shard="echo-1")
    assert lines(run("ls", "echo")) == [{"dict": "blobs", "entries": 1}, {"dict": "carts", "entries": 2}]
    head = {"dict": "carts", "codec": "msgpack", "bytes": len(CART)}
    seven = head | {"key": "7", "spelled": 7, "version": 1}
    assert lines(run("ls", "echo", "carts")) == [seven, head | {"key": "a", "spelled": "a", "version": 2}]
    assert lines(run("ls", "echo", "carts", "7")) == [seven]


def test_get_shows_a_value_as_the_code_of_the_services_reads_it() -> None:
    old = msgspec.msgpack.encode({"items": ["apple"]})
    message = EchoRequest(key="a b", text="x").SerializeToString()
    write(
        KeyWrite("old", 1, (row("carts", old, spelled=b"sold"),)),
        KeyWrite("a%20b", 1, (row("requests", message, spelled=b"sa b", codec="protobuf"),)),
        KeyWrite("b", 1, (row("blobs", b"oof", spelled=b"bb", codec="reversed"),)),
        KeyWrite("bytes", 1, (row("anything", msgspec.msgpack.encode(b"x"), spelled=b"sbytes"),)),
    )
    (cart,) = lines(with_code("get", "echo", "carts", "old"))
    assert (cart["value"], cart["version"]) == ({"items": {"apple": 1}}, 2)
    (request,) = lines(with_code("get", "echo", "requests", "a b"))
    assert (request["key"], request["value"]) == ("a%20b", {"key": "a b", "text": "x"})
    (blob,) = lines(with_code("get", "echo", "blobs", "b"))
    assert (blob["spelled"], blob["data"]) == ({"base64": "Yg=="}, "b29m")
    assert "codec 'reversed'" in blob["note"]
    (anything,) = lines(with_code("get", "echo", "anything", "bytes"))
    assert "another value would come back" in anything["note"]


def test_of_a_key_in_two_files_the_copy_that_was_written_last_counts() -> None:
    write(KeyWrite("a", 2, (row("carts", CART, version=2),)), KeyWrite("b", 1, (row("carts", b"old"),)))
    write(KeyWrite("a", 1, (row("carts", b"old"),)), KeyWrite("b", 2), shard="echo-1")
    assert [line["key"] for line in lines(run("ls", "echo", "carts"))] == ["a"]
    assert lines(run("get", "echo", "carts", "a", "--raw"))[0]["version"] == 2


def test_check_says_which_values_the_new_code_cannot_read_and_why_and_changes_nothing() -> None:
    write(
        KeyWrite("good", 1, (row("carts", CART, version=2),)),
        KeyWrite("wrong", 1, (row("carts", msgspec.msgpack.encode({"note": 7}), spelled=b"swrong", version=2),)),
        KeyWrite("newer", 1, (row("carts", CART, spelled=b"snewer", version=3),)),
        KeyWrite("foreign", 1, (row("requests", CART, spelled=b"sforeign"),)),
        KeyWrite("torn", 1, (row("carts", CART, spelled=b"i\xff", version=2),)),
        KeyWrite("gone", 1, (row("wishes", b""),)),
    )
    before = Path("state/echo/echo-0.sqlite").read_bytes()
    result = with_code("check", "--app", "echo", "--json")
    assert result.exit_code == 3
    *unreadable, checked = [json.loads(line) for line in result.stdout.splitlines()]
    reasons = {line["key"]: line["reason"] for line in unreadable}
    assert reasons.keys() == {"wrong", "newer", "foreign", "torn"}
    assert reasons["wrong"].endswith("Expected `str`, got `int` - at `$.note`")
    assert reasons["newer"] == "keyed 'carts', key 'newer': of version 3, but this release knows versions up to 2"
    assert "written by codec 'msgpack', but this release has 'protobuf'" in reasons["foreign"]
    assert "is damaged" in reasons["torn"]
    outcome = {"event": "checked", "app": "echo", "read": 1, "unreadable": 4, "undeclared": {"wishes": 1}}
    assert checked == outcome
    assert Path("state/echo/echo-0.sqlite").read_bytes() == before


@pytest.mark.slow
def test_check_looks_at_every_app_of_a_file_in_a_process_of_its_own(folder: Path) -> None:
    write(KeyWrite("a", 1, (row("carts", CART, version=9),)))
    other = '[apps.other]\nlisten = "127.0.0.1:0"\nshards = 1\nservices = ["tests.nowhere:Nothing"]\n'
    file = folder / "onelane.toml"
    file.write_text(f"{file.read_text()}\n{other}")
    command = [sys.executable, "-m", "onelane", "state", "check", "--app-dir", str(ROOT)]
    check = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert check.returncode == 3
    echo_line, *counts = check.stdout.splitlines()
    assert echo_line == "echo: keyed 'carts', key 'a': of version 9, but this release knows versions up to 2"
    # Of an app that has stored nothing no code is run.
    assert counts == ["echo: 0 values can be read, 1 cannot", "other: 0 values can be read, 0 cannot"]


def test_what_is_not_stored_is_said_in_one_sentence(folder: Path) -> None:
    assert "no state of echo is stored in state/echo" in run("ls", "echo").stderr
    assert not (folder / "state").exists()
    write(KeyWrite("a", 1))
    missing = run("get", "echo", "carts", "a", "--raw")
    assert (missing.exit_code, missing.stderr) == (1, "onelane: 'carts' of echo has no entry of the key 'a'\n")
    unknown = run("ls", "lobby")
    assert (unknown.exit_code, unknown.stdout) == (3, "")
    assert "'lobby' is not in the file; it has ['echo']" in unknown.stderr
    (folder / "onelane.toml").write_text(echo(2, "[apps.echo.state]", 'store = "memory"'))
    assert "the store 'memory' ends with its process" in run("export", "echo", "--raw").stderr
