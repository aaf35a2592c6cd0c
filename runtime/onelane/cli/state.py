"""`onelane state`: what is stored of the durable dicts of an app, read and changed without the app."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from onelane import config
from onelane.cli.admin_client import printable
from onelane.cli.arguments import APP_DIR, FILE_ARGUMENT, JSON, reporting_errors
from onelane.config import Config
from onelane.errors import BadConfig, BadState, NotThere, StillRunning, StoreRefused
from onelane.secret_files import kept_from_children

if TYPE_CHECKING:
    from onelane.state.declaration import ValueCodec
    from onelane.state.store import Row
    from onelane.state.stored import StoredState
    from onelane.state.stored_changes import StoredChanges

FILE_OPTION = click.option(
    "--file",
    type=click.Path(path_type=Path),
    default=Path("onelane.toml"),
    show_default=True,
    help="The file that names the app, its services and its store.",
)
RAW = click.option("--raw", is_flag=True, help="Run no code of the services: show values as their bytes, in base64.")
CHECK_FAULTS = 3
MAX_FAULTS = 20
"""Faults of an import that are shown."""


@click.group()
def state() -> None:
    """What is stored of the durable dicts of an app (`shard.keyed(…, durable=True)`).

    `ls`, `get`, `export`, `check` and `backup` change nothing, and may be used while the app runs. One entry is one
    line, a JSON object. A KEY is the routing key as text.
    """


@dataclass(frozen=True, slots=True)
class AppOfFile:
    """An app of a file, and where its services are imported from."""

    name: str
    configuration: Config
    app_dir: str

    @property
    def settings(self) -> config.App:
        return self.configuration.apps[self.name]

    def dicts(self, *, raw: bool = False) -> "Mapping[str, ValueCodec]":
        """The durable dicts that its services declare; none where their code is not to run."""
        from onelane.cli.declared_dicts import declared_dicts

        return {} if raw else declared_dicts(self.configuration, self.name, app_dir=self.app_dir)

    @contextmanager
    def stored(self) -> "Iterator[StoredState]":
        from onelane.state.stored import stored_state

        with stored_state(self.settings.state, self.name) as stored:
            yield stored

    @contextmanager
    def changing(self, *, creates: bool = False) -> "Iterator[StoredChanges]":
        from onelane.state.stored_changes import changing

        with changing(self.settings.state, self.name, creates=creates) as changes:
            yield changes


@contextmanager
def app_of(file: Path, app: str, app_dir: Path | None) -> Iterator[AppOfFile]:
    """Raises BadConfig where the file has faults, or no such app."""
    with kept_from_children() as environment:
        configuration = config.load(file, environment)
        configuration.only(app)
        yield AppOfFile(app, configuration, str((app_dir or file.parent).resolve()))


@state.command("ls")
@click.argument("app")
@click.argument("dict_name", metavar="[DICT]", required=False)
@click.argument("key", required=False)
@FILE_OPTION
@reporting_errors
def list_entries(app: str, dict_name: str | None, key: str | None, file: Path) -> None:
    """List the dicts of APP with the number of their entries; or the entries of DICT, without their values."""
    with app_of(file, app, None) as wanted, wanted.stored() as stored:
        if dict_name is not None:
            _list_dict(stored, dict_name, key)
            return
        counts: dict[str, int] = {}
        for _, row in stored.rows():
            counts[row.dict_name] = counts.get(row.dict_name, 0) + 1
        for name, entries in sorted(counts.items()):
            _print({"dict": name, "entries": entries})


def _list_dict(stored: "StoredState", dict_name: str, key: str | None) -> None:
    from onelane.state.json_values import head_of

    for text, row in stored.rows(dict_name, _known(stored, key)):
        _print(head_of(text, row) | {"bytes": len(row.value)})


@state.command("get")
@click.argument("app")
@click.argument("dict_name", metavar="DICT")
@click.argument("key")
@FILE_OPTION
@APP_DIR
@RAW
@reporting_errors
def get_entry(app: str, dict_name: str, key: str, file: Path, app_dir: Path | None, raw: bool) -> None:
    """Show the entry of KEY in DICT, with its value as JSON."""
    if not _show(app, dict_name, key, file, app_dir, raw=raw):
        raise NotThere(f"{dict_name!r} of {app} has no entry of the key {key!r}")


@state.command("export")
@click.argument("app")
@click.argument("dict_name", metavar="[DICT]", required=False)
@click.argument("key", required=False)
@FILE_OPTION
@APP_DIR
@RAW
@reporting_errors
def export_entries(
    app: str, dict_name: str | None, key: str | None, file: Path, app_dir: Path | None, raw: bool
) -> None:
    """Write the entries of APP, of DICT, or of KEY in it, with their values, as `import` reads them.

    Remembered answers and reminders are in a `backup` alone.
    """
    _show(app, dict_name, key, file, app_dir, raw=raw)


def _show(app: str, dict_name: str | None, key: str | None, file: Path, app_dir: Path | None, *, raw: bool) -> int:
    """Print entries with their values; returns their number."""
    from onelane.state.json_values import entry_as_json

    number = 0
    with app_of(file, app, app_dir) as wanted, wanted.stored() as stored:
        dicts = wanted.dicts(raw=raw)
        for text, row in stored.rows(dict_name, _known(stored, key)):
            _print(entry_as_json(text, row, dicts.get(row.dict_name)))
            number += 1
    return number


def _known(stored: "StoredState", key: str | None) -> str | None:
    """The canonical text of a key that somebody has typed, as it is stored or as the service spells it."""
    from onelane.state.entries import canonical_key

    if key is None or any(stored.states(key)):
        return key
    return canonical_key(key) or key


@state.command("check")
@FILE_ARGUMENT
@click.option("--app", help="This app alone.")
@APP_DIR
@JSON
@reporting_errors
def check_values(file: Path, app: str | None, app_dir: Path | None, as_json: bool) -> None:
    """Decode every stored value with the code of the services of FILE, as it is now, and list those that it cannot
    read: before a deploy. Nothing is changed.

    Exit code 3 where a value cannot be read. With --json one line for each of those, and one for each app.
    """
    if app is not None:
        with app_of(file, app, app_dir) as wanted:
            sys.exit(_check_app(wanted, as_json=as_json))
    # One process for each app: their services may have modules, or messages, of the same name.
    command = [sys.executable, "-m", "onelane", "state", "check", str(file), *(["--json"] if as_json else [])]
    command += [] if app_dir is None else ["--app-dir", str(app_dir)]
    sys.exit(max(subprocess.run([*command, "--app", name], check=False).returncode for name in config.load(file).apps))


def _check_app(app: AppOfFile, *, as_json: bool) -> int:
    from onelane.state.stored_check import StoredCheck

    try:
        with app.stored() as stored:
            check = StoredCheck(stored.rows(), app.dicts())
            for unreadable in check.unreadable():
                line = {"event": "unreadable", "app": app.name, **unreadable}
                click.echo(json.dumps(line) if as_json else f"{app.name}: {printable(unreadable['reason'])}")
    except NotThere:
        check = StoredCheck(iter(()), {})
    outcome = {"read": check.read, "unreadable": check.failed, "undeclared": check.undeclared}
    if as_json:
        _print({"event": "checked", "app": app.name, **outcome})
    else:
        click.echo(f"{app.name}: {check.read} values can be read, {check.failed} cannot")
        for name, entries in check.undeclared.items():
            click.echo(
                f"{app.name}: keyed {name!r}: no service declares it: {entries} entries are left alone", err=True
            )
    return CHECK_FAULTS if check.failed else 0


@state.command("import")
@click.argument("app")
@click.argument("lines", metavar="[PATH]", type=click.File("r", encoding="utf-8"), default="-")
@FILE_OPTION
@APP_DIR
@RAW
@reporting_errors
def import_entries(app: str, lines: TextIO, file: Path, app_dir: Path | None, raw: bool) -> None:
    """Write entries that `export` has written, maybe edited since, into the store of APP, which does not run. PATH, or
    standard input, has one in each line. Other entries stay.

    A `value` is written by the code of the services; `data` as it is. All lines are checked before the first is
    written.
    """
    with app_of(file, app, app_dir) as wanted:
        _check_stopped(wanted)
        rows = _rows_in(lines, dict(wanted.dicts(raw=raw)))
        with wanted.changing(creates=True) as changes:
            changes.put(rows)
    click.echo(f"wrote {sum(map(len, rows.values()))} entries of {len(rows)} keys")


def _rows_in(lines: TextIO, codecs: "dict[str, ValueCodec]") -> "dict[str, list[Row]]":
    """The entries of all lines, by their keys. Raises BadConfig with the faults of all lines."""
    from onelane.state.json_values import entry_from_json

    rows: dict[str, dict[str, Row]] = {}
    faults = []
    for number, line in enumerate(lines, 1):
        try:
            key, row = entry_from_json(json.loads(line), codecs)
        except (ValueError, BadState) as error:
            faults.append(f"line {number}: {error}")
            continue
        if row.dict_name in rows.setdefault(key, {}):
            faults.append(f"line {number}: a second entry of {row.dict_name!r} for the key {key!r}")
        rows[key][row.dict_name] = row
    if faults:
        more = [f"and {len(faults) - MAX_FAULTS} more"] if len(faults) > MAX_FAULTS else []
        raise BadConfig(lines.name, faults[:MAX_FAULTS] + more)
    return {key: list(entries.values()) for key, entries in rows.items()}


@state.command("rm")
@click.argument("app")
@click.argument("dict_name", metavar="DICT")
@click.argument("key", required=False)
@click.option("--all", "drops_all", is_flag=True, help="Every entry of DICT, instead of the one of KEY.")
@FILE_OPTION
@reporting_errors
def remove_entries(app: str, dict_name: str, key: str | None, drops_all: bool, file: Path) -> None:
    """Remove the entry of KEY in DICT from the store of APP, which does not run."""
    if (key is None) != drops_all:
        raise click.UsageError("give either a KEY, or --all")
    with app_of(file, app, None) as wanted:
        _check_stopped(wanted)
        with wanted.changing() as changes:
            keys = [text for text, _ in changes.stored.rows(dict_name, _known(changes.stored, key))]
            if key is not None and not keys:
                raise NotThere(f"{dict_name!r} of {app} has no entry of the key {key!r}")
            changes.drop(dict_name, keys)
    click.echo(f"removed {len(keys)} entries of {dict_name!r}")


@state.command("backup")
@click.argument("app")
@click.argument("path", type=click.Path(path_type=Path))
@FILE_OPTION
@reporting_errors
def back_up(app: str, path: Path, file: Path) -> None:
    """Copy all that is stored of APP into a new folder PATH, also while it runs: the state of one moment, with
    remembered answers and reminders. Of the store "sqlite"; PostgreSQL has pg_dump."""
    from onelane.state import sqlite_backup

    with app_of(file, app, None) as wanted:
        settings = wanted.settings.state
        _check_has_files(wanted)
        shards = sqlite_backup.back_up(settings.folder, app, path, patience_s=settings.patience_s)
    click.echo(f"{path} has the state of {', '.join(shards)}")


@state.command("restore")
@click.argument("app")
@click.argument("path", type=click.Path(path_type=Path, exists=True, file_okay=False))
@FILE_OPTION
@reporting_errors
def restore(app: str, path: Path, file: Path) -> None:
    """Put what `backup` has written to PATH in the place of all that is stored of APP, which does not run. The former
    files are renamed, not removed."""
    from onelane.state import sqlite_backup

    with app_of(file, app, None) as wanted:
        settings = wanted.settings.state
        _check_has_files(wanted)
        _check_stopped(wanted)
        former = sqlite_backup.restore(settings.folder, app, path, patience_s=settings.patience_s)
    click.echo(f"restored {app} from {path}" + (f"; the former files are in {former}" if former else ""))


def _check_has_files(app: AppOfFile) -> None:
    store = app.settings.state.store
    if store != "sqlite":
        tools = "pg_dump and pg_restore" if store == "postgresql" else "its own tools"
        raise StoreRefused(f"apps.{app.name}.state", seen=f"the store {store!r}", expected=f"sqlite: use {tools}")


def _check_stopped(app: AppOfFile) -> None:
    """Raises StillRunning where a process has the files of the app, or the admin address of the file answers for it."""
    from onelane.cli import admin_client
    from onelane.state.stored_changes import check_stopped

    check_stopped(app.settings.state, app.name)
    configuration = app.configuration.only(app.name)
    try:
        apps = admin_client.fetch(admin_client.address_in(configuration), "/status")["apps"]
    except (admin_client.Unreachable, admin_client.ForeignServer, NotThere):
        return
    if app.name in apps:
        raise StillRunning(app.name, f"the supervisor at {configuration.admin} has it")


def _print(line: dict[str, Any]) -> None:
    click.echo(json.dumps(line))
