"""`onelane plan`: what `onelane scale` would move, before it is done."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import click

from onelane import config
from onelane.cli.arguments import ADDRESS, JSON, address_of, reporting_errors
from onelane.cli.state import FILE_OPTION
from onelane.core import addresses
from onelane.core.keys import canonical
from onelane.core.placement import Member, Placement
from onelane.core.plan import Plan, with_shards
from onelane.core.plan import plan as compare
from onelane.errors import Invalid

SHOWN_KEYS = 10
MAX_SHARDS = 10_000


@click.command()
@click.argument("app")
@click.argument("shards", type=click.IntRange(1, MAX_SHARDS), metavar="N")
@click.option("--keys", type=click.File("r", encoding="utf-8"), help="A file of keys, one in each line; else hot keys.")
@FILE_OPTION
@ADDRESS
@JSON
@reporting_errors
def plan(app: str, shards: int, keys: TextIO | None, file: Path, address: str | None, as_json: bool) -> None:
    """Say what N shards of APP would change: the keys that move, and what each shard has before and after.

    The shards that run are asked for at the admin address; with --keys the file is enough, where its ports are fixed.
    The keys of a file count as often as they are in it, and those that are hot now by their calls. Nothing is changed.
    """
    settings = config.load(file).only(app).apps[app]
    snapshot = _running(app, address_of(address), is_needed=keys is None)
    before = _placement(app, settings, snapshot)
    counts = _hot_keys(app, snapshot) if keys is None else _keys_in(keys)
    outcome = compare(before, _after(app, settings, before, shards), counts)
    if as_json:
        skew = {"skew_before": outcome.skew_before, "skew_after": outcome.skew_after}
        click.echo(json.dumps({"app": app, **asdict(outcome), **skew}, indent=2))
    else:
        _show(app, outcome, "hot keys" if keys is None else keys.name)


def _running(app: str, address: str, *, is_needed: bool) -> dict[str, Any] | None:
    """The app as the admin page shows it; None where no supervisor has it, and it is not needed."""
    from onelane.cli import admin_client

    try:
        apps = admin_client.fetch(address, "/snapshot")["apps"]
    except admin_client.Unreachable:
        if is_needed:
            raise
        return None
    present = next((running for running in apps if running["name"] == app), None)
    if present is None and is_needed:
        raise Invalid(f"{address} runs no app {app!r}; --keys FILE needs none")
    return present


def _placement(app: str, settings: config.App, running: dict[str, Any] | None) -> Placement:
    rows = [] if running is None else running["shards"]
    members = [Member(row["name"], row["address"], "") for row in rows]
    members = members or [_member(app, settings, index) for index in range(settings.shard_count)]
    names = [member.name for member in members]
    pins = {key: names[index] for key, index in settings.pins.items() if index < len(names)}
    return Placement(0, tuple(members), settings.points, pins)


def _after(app: str, settings: config.App, before: Placement, shards: int) -> Placement:
    added = [_member(app, settings, index) for index in range(len(before.members), shards)]
    return with_shards(before, (*before.members[:shards], *added))


def _member(app: str, settings: config.App, index: int) -> Member:
    """A shard as the file describes it. Where the system chooses its port, other keys will move, and as many."""
    host = settings.advertise or addresses.split(settings.listen)[0]
    return Member(f"{app}-{index}", addresses.join(host, settings.own_port_of(index) or 1 + index), "")


def _hot_keys(app: str, running: dict[str, Any] | None) -> dict[str, int]:
    assert running is not None
    if running["show_keys"]:
        return {row["key"]: row["calls"] for row in running["hot_keys"]}
    click.echo(f"{app} does not show its keys (show_keys): the shares of the ring alone; or give --keys FILE", err=True)
    return {}


def _keys_in(lines: TextIO) -> dict[str, int]:
    """The keys of a file, as a service spells them or in their canonical text, with the number of their lines."""
    texts = (line.rstrip("\r\n") for line in lines)
    return Counter(text if "%" in text else canonical(text) for text in texts if text)


def _show(app: str, outcome: Plan, source: str) -> None:
    from onelane.cli.listing import Column, Listing
    from onelane.cli.standard_streams import console

    titles = ("share before", "share after", "keys before", "keys after")
    listing = Listing([Column("shard", False), *map(Column, titles)])
    for shard in outcome.shards:
        shares = (f"{100 * shard.share_before:.1f}%", f"{100 * shard.share_after:.1f}%")
        listing.add(shard.name, *shares, str(shard.keys_before), str(shard.keys_after))
    listing.show(console())
    click.echo(f"{app}: {100 * outcome.moved_share:.1f} % of the ring moves; skew {outcome.skew_before:.2f} → "
               f"{outcome.skew_after:.2f}")  # fmt: skip
    if outcome.keys:
        more = f" and {len(outcome.moved) - SHOWN_KEYS} more" if len(outcome.moved) > SHOWN_KEYS else ""
        names = ", ".join(outcome.moved[:SHOWN_KEYS]) or "none"
        click.echo(f"of {source}: {len(outcome.moved)} move: {names}{more}")
