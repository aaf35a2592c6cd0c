"""`onelane scale`, `onelane pin` and `onelane unpin`: commands that change the placement of a running app."""

import json
from typing import Any

import click

from onelane.cli.arguments import ADDRESS, JSON, address_of, reporting_errors


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("app")
@click.argument("shards", type=int, metavar="N")
@ADDRESS
@JSON
@reporting_errors
def scale(app: str, shards: int, address: str | None, as_json: bool) -> None:
    """Have N shards of APP, while it runs: keys that change their owner take their state along.

    The file is not changed: the next start of `onelane up` has the number that it names. A second `scale` waits for the
    one that is under way.
    """
    from onelane.cli import progress

    path = _path("/scale", app=app, shards=shards)
    outcome = progress.follow(address_of(address), path, quiet=as_json, what="change")
    if as_json:
        click.echo(json.dumps(outcome, indent=2))
        return
    click.echo(f"{outcome['app']}: {outcome['before']} → {outcome['shards']} shards")
    for key in outcome["waiting_pins"]:
        click.echo(f"the pin of {key} waits until its shard is back")


@click.command()
@click.argument("key")
@click.argument("shard")
@ADDRESS
@JSON
@reporting_errors
def pin(key: str, shard: str, address: str | None, as_json: bool) -> None:
    """Have SHARD own KEY (its canonical text, as in `pins` and in `onelane top`), whatever the ring says; its state
    moves along.

    Kept until `onelane unpin`, through scaling and restarts of shards, but not over a restart of `onelane up`: those of
    the file are.
    """
    outcome = _ask_for_change(address_of(address), "/pin", key=key, shard=shard)
    click.echo(json.dumps(outcome, indent=2) if as_json else f"{outcome['key']} is on {outcome['shard']}")


@click.command()
@click.argument("key")
@click.option("--app", help="The app that has the pin, where several have one for KEY.")
@ADDRESS
@JSON
@reporting_errors
def unpin(key: str, app: str | None, address: str | None, as_json: bool) -> None:
    """Have the ring say again which shard owns KEY; its state moves along."""
    outcome = _ask_for_change(address_of(address), "/unpin", key=key, **({"app": app} if app else {}))
    click.echo(json.dumps(outcome, indent=2) if as_json else f"{outcome['key']} is where the ring puts it")


def _ask_for_change(address: str, path: str, **parameters: str | int) -> dict[str, Any]:
    from onelane.cli import admin_client

    return admin_client.command(address, _path(path, **parameters))


def _path(path: str, **parameters: str | int) -> str:
    from urllib.parse import urlencode

    return f"{path}?{urlencode(parameters)}"
