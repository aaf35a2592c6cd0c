"""The machines of a cluster as text, for `onelane status`, `onelane top` and `onelane cluster status`: as the machine
that was asked tells, or etcd alone."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from onelane.cli.listing import Column, Listing

MACHINE_COLUMNS = (
    Column("machine", is_number=False),
    Column("state", is_number=False),
    Column("for", rank=2),
    Column("coordinates", is_number=False, rank=3),
    Column("lease", rank=4),
    Column("shards", is_number=False, rank=1),
    Column("host", is_number=False, rank=5),
    Column("release", is_number=False, rank=6),
    Column("page", is_number=False, rank=7),
)
ELSEWHERE_COLUMNS = (
    Column("app", is_number=False, rank=9),
    Column("shard", is_number=False),
    Column("machine", is_number=False),
    Column("keys", is_number=False, rank=1),
    Column("address", is_number=False),
    Column("life", rank=2),
)
MACHINE_STYLES = {"joined": "green", "missing": "red", "cut off": "red"}
"""Of states; all others are yellow."""


def show(cluster: dict[str, Any], console: Console) -> None:
    """The cluster, for a terminal or for a pipe."""
    console.print(heading(cluster), soft_wrap=True, markup=False)
    for warning in warnings(cluster):
        console.print(warning, soft_wrap=True, markup=False)
    for listing in (machines(cluster), shards_elsewhere(cluster)):
        if listing.rows:
            console.print()
            listing.show(console)


def heading(cluster: dict[str, Any]) -> str:
    """The cluster, in one line."""
    coordinator = cluster["coordinator"] or "no machine"
    return f"cluster {cluster['name']}  told by {cluster['machine'] or 'etcd'}  {coordinator} coordinates"


def warnings(cluster: dict[str, Any]) -> Iterator[str]:
    """What is not as it is to be, or is changing, a line each."""
    own = next((row for row in cluster["machines"] if row["name"] == cluster["machine"]), {"state": ""})
    lease = cluster["lease"]
    why = f" ({lease['fault']})" if lease["fault"] else ""
    if own["state"] == "cut off":
        yield (
            f"{cluster['machine']} is cut off: etcd has answered last {ago(lease['renewed_s_ago'])} ago{why}; "
            "it serves no key until its lease is renewed, and the rest is as it knew last"
        )
    elif own["state"] == "joining":
        yield f"{cluster['machine']} has no lease{why}: it serves no key, and the rest is as it knew last"
    elif why:
        yield f"the lease of {cluster['machine']} was not renewed{why}: in {lease['left_s']:.1f} s it serves no key"
    for row in cluster["machines"]:
        if row["fault"] and row is not own:
            yield f"{row['name'] or 'a machine'}: {row['fault']}"
    for name, app in cluster["apps"].items():
        yield from _warnings_of(name, app)


def _warnings_of(name: str, app: dict[str, Any]) -> Iterator[str]:
    if app["change"] is not None:
        yield f"{name}: {change_text(app['change'])}"
    if app["unserved"]:
        yield f"{name}: the keys of {_listed(app['unserved'])} wait for its next process, or for another owner"
    if app["fault"]:
        yield f"{name}: its placement stays as it is: {app['fault']}"


def change_text(change: dict[str, Any]) -> str:
    """A change of placement over machines, in one line."""
    parts = [f"epoch {change['from']} → {change['to']}: {change['what']}"]
    parts += [f"waits for {_listed(change['waits_for'])}"] if change["waits_for"] else []
    parts += [f"{', '.join(change['dead'])} died meanwhile"] if change["dead"] else []
    parts += [f"{machine} takes what is owed to {shard}" for shard, machine in sorted(change["stand_ins"].items())]
    parts += [ago(change["since_s"])] if change["since_s"] is not None else []
    return "; ".join(parts)


def _listed(places: list[dict[str, Any]]) -> str:
    """Shards, with their machine where their name does not have it; of many the first ones."""
    names = [
        place["name"] if place["machine"] is None or "/" in place["name"] else f"{place['name']} on {place['machine']}"
        for place in places
    ]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def machines(cluster: dict[str, Any]) -> Listing:
    """All machines."""
    listing = Listing(MACHINE_COLUMNS)
    for row in cluster["machines"]:
        shards = ", ".join(f"{app}={len(lives)}" for app, lives in row["apps"].items() if lives)
        listing.add(
            row["name"] or "unknown",
            Text(row["state"], style=MACHINE_STYLES.get(row["state"], "yellow")),
            "" if row["since_s"] is None else ago(row["since_s"]),
            "yes" if row["coordinates"] else "",
            "" if row["lease_left_s"] is None else f"{row['lease_left_s']:.1f} s",
            shards,
            row["advertise"],
            row["release"] or "",
            row["admin"] or "",
        )
    return listing


def shards_elsewhere(cluster: dict[str, Any]) -> Listing:
    """The processes on other machines than the one that was asked."""
    listing = Listing(ELSEWHERE_COLUMNS)
    for row in cluster["machines"]:
        if row["name"] == cluster["machine"]:
            continue
        for app, lives in row["apps"].items():
            for life in lives:
                keys = "yes" if life["placed"] else ""
                listing.add(app, life["name"], row["name"] or "unknown", keys, life["address"], str(life["life"]))
    return listing


def ago(seconds: float) -> str:
    """A time that has passed, as roughly as people say it."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
