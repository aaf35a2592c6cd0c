"""`onelane turns`: the turns that an app holds, and the way out of one that is stuck."""

import json
from typing import Any
from urllib.parse import urlencode

import click

from onelane.cli.arguments import ADDRESS, JSON, address_of, reporting_errors


@click.command()
@click.argument("app")
@click.option(
    "--cancel", "key", metavar="KEY", help="End the call or code that holds the turn of KEY, as it is listed."
)
@ADDRESS
@JSON
@reporting_errors
def turns(app: str, key: str | None, address: str | None, as_json: bool) -> None:
    """List the turns that APP holds, longest first: the key, for how long, the method, its line, and who waits.

    A call that is ended by --cancel has the status UNAVAILABLE.
    """
    from onelane.cli import admin_client

    asked = address_of(address)
    if key is not None:
        outcome = admin_client.command(asked, f"/turns/cancel?{urlencode({'app': app, 'key': key})}")
        click.echo(json.dumps(outcome, indent=2) if as_json else _outcome(outcome))
        return
    held = admin_client.fetch(asked, f"/turns?{urlencode({'app': app})}")
    if as_json:
        click.echo(json.dumps(held, indent=2))
        return
    _show(held)


def _outcome(outcome: dict[str, Any]) -> str:
    if outcome["ended"]:
        return f"{outcome['method']} on {outcome['shard']} has ended, and with it the turn of {outcome['key']}"
    return (
        f"{outcome['method']} on {outcome['shard']} was cancelled, and still holds the turn of {outcome['key']}: it "
        "suppresses its cancellation, or does not wait for anything (see `onelane status` for stalls)"
    )


def _show(held: dict[str, Any]) -> None:
    from onelane.cli.listing import Column, Listing
    from onelane.cli.standard_streams import console

    listing = Listing([Column("shard", False), Column("key", False), Column("seconds"), Column("method", False),
                       Column("line", False, rank=2), Column("waiting"), Column("waiters", False, rank=3)])  # fmt: skip
    for turn in sorted(held["turns"], key=lambda turn: -(turn["seconds"] or 0.0)):
        seconds = "-" if turn["seconds"] is None else f"{turn['seconds']:.3f}"
        waiters = ", ".join(dict.fromkeys(waiter["method"] for waiter in turn["waiters"]))
        cells = (turn["shard"], turn["key"], seconds, turn["method"], turn["line"], str(turn["waiting"]), waiters)
        listing.add(*cells)
    listing.show(console())
    if held["held"] > len(held["turns"]):
        click.echo(f"and {held['held'] - len(held['turns'])} more turns, held for a shorter time", err=True)
    for shard in held["silent"]:
        click.echo(f"{shard} has not answered: its lane may be stalled (`onelane status` shows where)", err=True)
