"""What the tests of `onelane state` share: an app of a file in the current folder, and its store."""

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from onelane.cli.main import main
from onelane.state.sqlite_store import SqliteStore
from onelane.state.store import KeyWrite, Row, StoreOptions

from tests.running_app import ROOT

SERVICE = "tests.cli.stored_service:Stored"


def row(dict_name: str, value: bytes, *, spelled: bytes = b"sa", codec: str = "msgpack", version: int = 1) -> Row:
    return Row(dict_name, value, spelled, codec, version)


def write(*writes: KeyWrite, shard: str = "echo-0", life: int = 1) -> None:
    store = SqliteStore(StoreOptions("echo", shard, life, Path("state")))
    store.open()
    store.commit(writes, at=1.0)
    store.close()


def run(*arguments: str, text: str = "") -> Result:
    return CliRunner().invoke(main, ["state", *arguments], input=text)


def lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def with_code(*arguments: str, text: str = "") -> Result:
    return run(*arguments, "--app-dir", str(ROOT), text=text)
