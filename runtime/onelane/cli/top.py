"""`onelane top` and `onelane trace`: the content of the admin page, in a terminal."""

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

from onelane.cli.status import TIMEOUT_S, headers, send
from onelane.errors import NotThere, Transient

REFRESH_S = 1.0
NO_CALLS = "\u2013"
"""In place of the numbers of a method without calls: a dash."""
BARS = "▁▂▃▄▅▆▇█"
MAX_FAILURES = 5
"""Requests in a row that may fail before `top` gives up."""


def fetch(target: str, path: str) -> dict[str, Any]:
    """A JSON document of an admin address, without control characters that a terminal would interpret.

    Raises:
        NotThere: the supervisor has no such document.
        Transient: no supervisor answers there, or it refuses.
    """
    address = target.removeprefix("http://").rstrip("/")
    request = urllib.request.Request(f"http://{address}{path}", headers=headers())
    try:
        with send(request, TIMEOUT_S) as response:
            document: dict[str, Any] = printable(json.load(response))
            return document
    except urllib.error.HTTPError as error:
        reason = printable(error.read().decode("utf-8", "replace").strip())
        raise (NotThere if error.code == 404 else Transient)(f"{address}: {reason}") from error
    except (urllib.error.URLError, OSError, ValueError, HTTPException) as error:
        raise Transient(f"{address} does not answer as an admin address does: {error}") from error


def printable(document: Any) -> Any:
    """A JSON document without control characters: clients choose some of its names, attributes and keys."""
    if isinstance(document, str):
        return document if document.isprintable() else "".join(map(_printable, document))
    if isinstance(document, list):
        return [printable(element) for element in document]
    if isinstance(document, dict):
        return {printable(name): printable(member) for name, member in document.items()}
    return document


def _printable(character: str) -> str:
    return character if character.isprintable() or character == "\n" else "\N{REPLACEMENT CHARACTER}"


def top(target: str, console: Console, *, once: bool) -> None:
    """Show every app, refreshed each second until Ctrl-C; a single time if `once`, or where it is no terminal."""
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
                if failures > MAX_FAILURES:
                    raise
                live.update(Text(f"{error}\ntrying again", style="red"), refresh=True)
            time.sleep(REFRESH_S)


def screen(snapshot: dict[str, Any], history: dict[str, list[float]]) -> RenderableType:
    """A snapshot as one screen. history: app → calls a second, of the snapshots before; this one's are appended."""
    parts: list[RenderableType] = []
    for app in snapshot["apps"]:
        rate = sum(method["now"]["calls"] for method in app["methods"])
        past = history.setdefault(app["name"], [])
        past.append(rate)
        del past[:-40]
        parts += [_heading(app, rate, past), _shards(app), _methods(app)]
        parts += [part for part in (_hot_keys(app), _helpers(app), _stalls(app)) if part is not None]
    if snapshot["losses"]:
        losses = ", ".join(f"{loss['what']} {loss['count']:.0f}" for loss in snapshot["losses"])
        parts.append(Text(f"telemetry lost: {losses}", style="red"))
    return Group(*parts)


def _heading(app: dict[str, Any], rate: float, past: list[float]) -> Text:
    highest = max([*past, 1.0])
    bars = "".join(BARS[min(7, int(8 * rate_then / highest))] for rate_then in past)
    text = Text(f"{app['name']}", style="bold")
    text.append(f"  {app['listen']}  epoch {app['epoch']}  {rate:.0f} calls/s ", style="default")
    return text.append(bars, style="cyan")


def _table(*columns: str, left: int = 1) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", no_wrap=True)
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
    for method in sorted(app["methods"], key=lambda method: -method["now"]["calls"]):
        now = method["now"]
        if not now["calls"]:
            table.add_row(method["name"], *[NO_CALLS] * 5)
            continue
        errors = Text(f"{now['errors']:.1f}", style="red" if now["errors"] else "default")
        table.add_row(method["name"], f"{now['calls']:.1f}", errors, *(seconds(now[p]) for p in ("p50", "p95", "p99")))
    return table


def _hot_keys(app: dict[str, Any]) -> Text | None:
    keys = "  ".join(f"{row['key']} {row['calls']} ({row['shard']})" for row in app["hot_keys"][:5])
    return Text(f"hot keys: {keys}", style="dim", overflow="ellipsis", no_wrap=True) if keys else None


def _helpers(app: dict[str, Any]) -> Table | None:
    if not app["helpers"]:
        return None
    table = _table("helper", "shard", "queued", "p95 wait", "p95 run", left=2)
    for row in app["helpers"]:
        table.add_row(row["name"], row["shard"], str(row["depth"]), seconds(row["wait_p95"]), seconds(row["run_p95"]))
    return table


def _stalls(app: dict[str, Any]) -> Text | None:
    stalls = [(stall["at_ns"], shard["name"], stall) for shard in app["shards"] for stall in shard["last_stalls"]]
    if not stalls:
        return None
    at_ns, shard, stall = max(stalls, key=lambda row: row[0])
    when = datetime.fromtimestamp(at_ns / 1e9).strftime("%H:%M:%S")
    line = f"last stall: {when} {shard} {stall['kind']} {seconds(stall['seconds'])} at {stall['where'] or '-'}"
    return Text(line, style="yellow", overflow="ellipsis", no_wrap=True)


def traces(target: str, console: Console) -> None:
    """List the last traces, the newest first."""
    table = _table("trace", "when", "name", "took", "spans", "errors", left=3)
    for row in fetch(target, "/traces")["traces"]:
        when = datetime.fromtimestamp(row["start_ns"] / 1e9).strftime("%H:%M:%S")
        errors = Text(str(row["errors"]), style="red" if row["errors"] else "dim")
        # The beginning of the id is enough for `onelane trace`.
        table.add_row(row["trace_id"][:16], when, row["name"], seconds(row["seconds"]), str(row["spans"]), errors)
    console.print(table)


def trace(target: str, trace_id: str, console: Console) -> None:
    """Print one trace as a tree.

    Raises:
        NotThere: no trace has an id that begins so, or several have.
    """
    spans = fetch(target, f"/traces/{quote(trace_id, safe='')}")["spans"]
    begin = min(span["start_ns"] for span in spans)
    root = Tree(Text(f"trace {trace_id}", style="bold"))
    # The root and the ancestors of the latest span; a span's parent has the index of the span's depth.
    path: list[Tree] = [root]
    for span in spans:
        del path[span["depth"] + 1 :]
        path.append(path[-1].add(_span_line(span, begin)))
    console.print(root)


def _span_line(span: dict[str, Any], begin: int) -> Text:
    text = Text(span["name"])
    text.append(f" {span['kind'].lower()}", style="dim")
    text.append(f" {seconds(span['seconds'])}", style="cyan")
    text.append(f" +{seconds((span['start_ns'] - begin) / 1e9)} {span['shard']}", style="dim")
    if span["status"]:
        text.append(f" {span['status']}", style="red" if span["error"] else "green")
    elif span["error"]:
        text.append(f" {span['error']}", style="red")
    for event in span["events"]:
        pairs = " ".join(f"{name}={value}" for name, value in event["attributes"].items() if "\n" not in str(value))
        text.append(f"\n· {event['name']} {pairs}", style="yellow")
    return text


def seconds(duration_s: float) -> str:
    """A duration as text, in the unit that suits it."""
    scales: list[tuple[float, Callable[[float], str]]] = [
        (1.0, lambda s: f"{s:.2f} s"),
        (0.01, lambda s: f"{s * 1e3:.0f} ms"),
        (0.001, lambda s: f"{s * 1e3:.1f} ms"),
    ]
    small = f"{duration_s * 1e6:.0f} µs" if duration_s else "0"
    return next((text_of(duration_s) for least, text_of in scales if duration_s >= least), small)
