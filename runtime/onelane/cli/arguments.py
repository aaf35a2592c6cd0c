"""Arguments and options that several commands have, and how a command reports its errors."""

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from onelane.cli.admin_client import printable
from onelane.errors import BadConfig, BadService, OnelaneError, PortTaken, first_of

FILE_ARGUMENT = click.argument("file", type=click.Path(path_type=Path), default=Path("onelane.toml"))
APP_DIR = click.option(
    "--app-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder that services are imported from, by default that of FILE; then the current one.",
)
ADMIN = click.option(
    "--admin",
    envvar="ONELANE_ADMIN",
    show_envvar=True,
    metavar="IP:PORT",
    help="The admin address (page, /metrics, /status), instead of the file's.",
)
ADDRESS = click.option(
    "--admin",
    "address",
    envvar="ONELANE_ADMIN",
    show_envvar=True,
    metavar="IP:PORT",
    help="The admin address of the supervisor to ask; by default that of ./onelane.toml, else 127.0.0.1:9464.",
)
TARGET = click.argument("target", required=False, metavar="[IP:PORT]")
"""The same as ADDRESS, in fewer letters."""
INLINE = click.option("--inline", is_flag=True, help="Run all shards in this one process, for debuggers.")
RELOAD = click.option(
    "--reload",
    "reloads",
    is_flag=True,
    help="Restart the shards, which keep the state of their keys, when code changes; generate protos; use settings.",
)
RELOAD_DIRS = click.option(
    "--reload-dir",
    "reload_dirs",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A folder to watch, beside that of services and that of FILE.",
)
ACCEPT_MISSING_STATE = click.option(
    "--accept-missing-state",
    is_flag=True,
    help="Start though files of durable state are missing: what was in them is lost.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, with the documented fields.")


def reporting_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose `OnelaneError` becomes a message and an exit code; any other error keeps its traceback."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (OnelaneError, BaseExceptionGroup) as raised:
            error = first_of(raised) if isinstance(raised, BaseExceptionGroup) else raised
            if not isinstance(error, OnelaneError):
                raise
            click.echo(f"onelane: {printable(str(error))}", err=True)
            sys.exit(3 if isinstance(error, BadConfig | BadService) else 4 if isinstance(error, PortTaken) else 1)

    return run


def address_of(*wanted: str | None) -> str:
    """The admin address that the arguments of a command name; where they name none, the default."""
    from onelane.cli import admin_client

    return admin_client.address_of(next(filter(None, wanted), None))
