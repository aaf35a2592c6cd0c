"""The lines that a command prints while it changes the shards of an app."""

import sys
from typing import Any

import click

from onelane.cli.status import change_text

WORDS = {"joined": "has joined (life {life})", "left": "has left", "replaced": "is replaced by life {life}"}


def follow(address: str, path: str, *, quiet: bool, what: str) -> dict[str, Any]:
    """Send a command and print its progress; the outcome. quiet: print none. what: the command, for people.

    Ctrl-C ends this process alone.
    """
    from onelane.cli import admin_client

    try:
        if quiet:
            return admin_client.command(address, path)
        return admin_client.follow(address, path, lambda line: click.echo(text_of(line)))
    except KeyboardInterrupt:
        click.echo(f"\nonelane: the {what} goes on; `onelane status` shows how far it is", err=True)
        sys.exit(130)


def text_of(line: dict[str, Any]) -> str:
    """One line on the progress of a command, for people."""
    if "change" in line:
        return f"{line['app']}: {change_text(line['change'])}"
    return f"{line['shard']} {WORDS[line['event']].format(life=line['life'])}"
