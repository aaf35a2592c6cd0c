"""`onelane top` and `onelane trace`: what the page shows, in a terminal."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import datetime
from http.client import HTTPException
from typing import Any
from urllib.parse import quote

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from onelane.cli.status import TIMEOUT_S, headers, opened
from onelane.errors import NotThere, Transient

EVERY_S = 1.0
BARS = "▁▂▃▄▅▆▇█"
LOST_AFTER = 5
"""Answers in a row that may fail before `top` gives up."""


def fetch(target: str, path: str) -> dict[str, Any]:
    """What the supervisor at an admin address says; of its texts, what a terminal would obey is left out.

    Raises:
        NotThere: it knows no such thing.
        Transient: nobody answers there, or it refuses.
    """
    address = target.removeprefix("http://").rstrip("/")
    request = urllib.request.Request(f"http://{address}{path}", headers=headers())
    try:
        with opened(request, TIMEOUT_S) as answer:
            found: dict[str, Any] = printable(json.load(answer))
            return found
    except urllib.error.HTTPError as error:
        words = printable(error.read().decode("utf-8", "replace").strip())
        raise (NotThere if error.code == 404 else Transient)(f"{address}: {words}") from error
    except (urllib.error.URLError, OSError, ValueError, HTTPException) as error:
        raise Transient(f"{address} does not answer as an admin address does: {error}") from error


def printable(value: Any) -> Any:
    """The same without control characters: names, attributes and keys may come from whoever calls a service."""
    if isinstance(value, str):
        return value if value.isprintable() else "".join(map(_printable, value))
    if isinstance(value, list):
        return [printable(one) for one in value]
    if isinstance(value, dict):
        return {printable(name): printable(one) for name, one in value.items()}
    return value


def _printable(character: str) -> str:
    return character if character.isprintable() or character == "\n" else "\N{REPLACEMENT CHARACTER}"


def top(target: str, console: Console, *, once: bool) -> None:
    """Show every app, anew each second until Ctrl-C; `once`, or where nobody watches, a single time."""
    history: dict[str, list[float]] = {}
    if once or not console.is_terminal:
        console.print(screen(fetch(target, "/snapshot"), history))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        failures = 0
        while True:
            try:
                live.update(screen(fetch(target, "/snapshot"), history), refresh=True)
                failures = 0
            except Transient as error:
                failures += 1
                if failures > LOST_AFTER:
                    raise
                live.update(Text(f"{error}\ntrying again", style="red"), refresh=True)
            time.sleep(EVERY_S)


def screen(found: dict[str, Any], history: dict[str, list[float]]) -> RenderableType:
    """One picture. history: calls a second of each app, of the pictures before; this one's are added."""
    parts: list[RenderableType] = []
    for app in found["apps"]:
        rate = sum(method["now"]["calls"] for method in app["methods"])
        past = history.setdefault(app["name"], [])
        past.append(rate)
        del past[:-40]
        parts += [_heading(app, rate, past), _shards(app), _methods(app)]
        parts += [part for part in (_hot_keys(app), _helpers(app), _stalls(app)) if part is not None]
    if found["losses"]:
        words = ", ".join(f"{loss['what']} {loss['count']:.0f}" for loss in found["losses"])
        parts.append(Text(f"telemetry lost: {words}", style="red"))
    return Group(*parts)


def _heading(app: dict[str, Any], rate: float, past: list[float]) -> Text:
    most = max([*past, 1.0])
    line = "".join(BARS[min(7, int(8 * one / most))] for one in past)
    text = Text(f"{app['name']}", style="bold")
    text.append(f"  {app['listen']}  epoch {app['epoch']}  {rate:.0f} calls/s ", style="default")
    return text.append(line, style="cyan")


def _table(*columns: str, left: int = 1) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < left else "right", no_wrap=True)
    return table


def _shards(app: dict[str, Any]) -> Table:
    table = _table(
        "shard", "state", "pid", "in flight", "load", "lag", "calls", "hops", "steered", "restarts", "stalls", left=2
    )
    for shard in app["shards"]:
        style = {"ready": "green", "draining": "yellow", "drained": "yellow", "starting": "yellow"}
        table.add_row(
            shard["name"],
            Text(shard["state"], style=style.get(shard["state"], "red")),
            *(str(shard[name]) for name in ("pid", "in_flight")),
            f"{100 * shard['load']:.0f} %",
            seconds(shard["lag_s"]),
            *(str(shard[name]) for name in ("calls", "forwarded", "steered", "restarts", "stalls")),
        )
    return table


def _methods(app: dict[str, Any]) -> Table:
    table = _table("method", "calls/s", "errors/s", "p50", "p95", "p99")
    for method in sorted(app["methods"], key=lambda one: -one["now"]["calls"]):
        now = method["now"]
        errors = Text(f"{now['errors']:.1f}", style="red" if now["errors"] else "default")
        table.add_row(method["name"], f"{now['calls']:.1f}", errors, *(seconds(now[p]) for p in ("p50", "p95", "p99")))
    return table


def _hot_keys(app: dict[str, Any]) -> Text | None:
    words = "  ".join(f"{one['key']} {one['calls']} ({one['shard']})" for one in app["hot_keys"][:5])
    return Text(f"hot keys: {words}", style="dim", overflow="ellipsis", no_wrap=True) if words else None


def _helpers(app: dict[str, Any]) -> Table | None:
    if not app["helpers"]:
        return None
    table = _table("helper", "shard", "queued", "p95 wait", "p95 run", left=2)
    for one in app["helpers"]:
        table.add_row(one["name"], one["shard"], str(one["depth"]), seconds(one["wait_p95"]), seconds(one["run_p95"]))
    return table


def _stalls(app: dict[str, Any]) -> Text | None:
    found = [(stall["at_ns"], shard["name"], stall) for shard in app["shards"] for stall in shard["last_stalls"]]
    if not found:
        return None
    at_ns, shard, stall = max(found, key=lambda one: one[0])
    when = datetime.fromtimestamp(at_ns / 1e9).strftime("%H:%M:%S")
    words = f"last stall: {when} {shard} {stall['kind']} {seconds(stall['seconds'])} at {stall['where'] or '-'}"
    return Text(words, style="yellow", overflow="ellipsis", no_wrap=True)


def traces(target: str, console: Console) -> None:
    """List the last traces, the newest first."""
    table = _table("trace", "when", "name", "took", "spans", "errors", left=3)
    for row in fetch(target, "/traces")["traces"]:
        when = datetime.fromtimestamp(row["start_ns"] / 1e9).strftime("%H:%M:%S")
        errors = Text(str(row["errors"]), style="red" if row["errors"] else "dim")
        # As much of the id as `onelane trace` needs to find it.
        table.add_row(row["trace_id"][:16], when, row["name"], seconds(row["seconds"]), str(row["spans"]), errors)
    console.print(table)


def trace(target: str, trace_id: str, console: Console) -> None:
    """Print one trace as a tree.

    Raises:
        NotThere: there is none by that id, or several begin so.
    """
    spans = fetch(target, f"/traces/{quote(trace_id, safe='')}")["spans"]
    begin = min(span["start_ns"] for span in spans)
    root = Tree(Text(f"trace {trace_id}", style="bold"))
    # The way from the root to the span before; a span's parent stands at its depth.
    way: list[Tree] = [root]
    for span in spans:
        del way[span["depth"] + 1 :]
        way.append(way[-1].add(_words(span, begin)))
    console.print(root)


def _words(span: dict[str, Any], begin: int) -> Text:
    text = Text(span["name"])
    text.append(f" {span['kind'].lower()}", style="dim")
    text.append(f" {seconds(span['seconds'])}", style="cyan")
    text.append(f" +{seconds((span['start_ns'] - begin) / 1e9)} {span['shard']}", style="dim")
    if span["status"]:
        text.append(f" {span['status']}", style="red" if span["error"] else "green")
    elif span["error"]:
        text.append(f" {span['error']}", style="red")
    for event in span["events"]:
        said = " ".join(f"{name}={value}" for name, value in event["attributes"].items() if "\n" not in str(value))
        text.append(f"\n· {event['name']} {said}", style="yellow")
    return text


def seconds(value: float) -> str:
    """A duration as people read it."""
    scales: list[tuple[float, Callable[[float], str]]] = [
        (1.0, lambda s: f"{s:.2f} s"),
        (0.01, lambda s: f"{s * 1e3:.0f} ms"),
        (0.001, lambda s: f"{s * 1e3:.1f} ms"),
    ]
    return next((say(value) for least, say in scales if value >= least), f"{value * 1e6:.0f} µs" if value else "0")
