"""`onelane top` and `onelane trace`: the content of the admin page, in a terminal."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text
from rich.tree import Tree

from onelane.cli import cluster_text
from onelane.cli.admin_client import fetch
from onelane.cli.keyboard import Keyboard
from onelane.cli.listing import Column, Listing, show_plain
from onelane.cli.status import change_text, durable_text
from onelane.cli.viewport import Viewport
from onelane.errors import Transient

REFRESH_S = 1.0
NO_CALLS = "\u2013"
"""In place of the numbers of a method without calls: a dash."""
KEY_S = 0.1
"""How long a key may wait for its effect."""
BARS = "▁▂▃▄▅▆▇█"
MAX_FAILURES = 5
"""Requests in a row that may fail before `top` gives up."""
STYLES = {"ready": "green", "draining": "yellow", "drained": "yellow", "starting": "yellow"}
SHARD_COLUMNS = (
    Column("app", is_number=False, rank=9),
    Column("shard", is_number=False),
    Column("state", is_number=False),
    Column("pid", rank=4),
    Column("in flight"),
    Column("load"),
    Column("lag", rank=1),
    Column("calls"),
    Column("hops", rank=5),
    Column("clients", rank=7),
    Column("steered", rank=6),
    Column("restarts", rank=2),
    Column("stalls", rank=3),
)
METHOD_COLUMNS = (
    Column("app", is_number=False, rank=9),
    Column("method", is_number=False),
    Column("calls/s"),
    Column("errors/s"),
    Column("p50", rank=1),
    Column("p95"),
    Column("p99", rank=2),
)
HELPER_COLUMNS = (
    Column("app", is_number=False, rank=9),
    Column("helper", is_number=False),
    Column("shard", is_number=False),
    Column("queued"),
    Column("p95 wait"),
    Column("p95 run"),
)
TRACE_COLUMNS = (
    Column("trace", is_number=False),
    Column("when", is_number=False),
    Column("name", is_number=False),
    Column("took"),
    Column("spans", rank=1),
    Column("errors"),
)


def top(address: str, console: Console, *, once: bool) -> None:
    """Show every app, refreshed each second until q or Ctrl-C; a single time if `once`, or where it is no terminal."""
    history: dict[str, list[float]] = {}
    if not console.is_terminal:
        show_columns(fetch(address, "/snapshot"), console)
    elif once:
        console.print(screen(fetch(address, "/snapshot"), history, console.width), crop=False)
    else:
        with Keyboard() as keyboard, Live(console=console, screen=True, auto_refresh=False) as live:
            _Watch(address, console, live, keyboard).run()


@dataclass
class _Watch:
    """One `onelane top` in a terminal: a thread fetches, this one draws and reads keys."""

    address: str
    console: Console
    live: Live
    keyboard: Keyboard

    def __post_init__(self) -> None:
        self._history: dict[str, list[float]] = {}
        self._viewport = Viewport()
        self._snapshot: dict[str, Any] | None = None
        self._fault = ""
        self._failures = 0

    def run(self) -> None:
        """Until `q`.

        Raises:
            Transient: `MAX_FAILURES` requests in a row have failed.
        """
        with ThreadPoolExecutor(1) as fetcher:
            pending, next_at = fetcher.submit(fetch, self.address, "/snapshot"), time.monotonic()
            while (key := self.keyboard.key(KEY_S)) not in ("q", "Q"):
                is_moved = key != "" and self._viewport.follow(key)
                is_new = pending.done() and time.monotonic() >= next_at
                if is_new:
                    self._take(pending)
                    pending, next_at = fetcher.submit(fetch, self.address, "/snapshot"), time.monotonic() + REFRESH_S
                if is_new or is_moved:
                    self._draw(is_new=is_new)

    def _take(self, answer: "Future[dict[str, Any]]") -> None:
        try:
            self._snapshot, self._fault, self._failures = answer.result(), "", 0
        except Transient as error:
            self._failures += 1
            if self._failures > MAX_FAILURES:
                raise
            self._fault = f"{error}, trying again"

    def _draw(self, *, is_new: bool) -> None:
        width, height = self.console.size
        content: RenderableType = Text("")
        if self._snapshot is not None:
            content = screen(self._snapshot, self._history, width, is_new=is_new and not self._fault)
        self.live.update(self._viewport.show(content, self.console, width, height, fault=self._fault), refresh=True)


def show_columns(snapshot: dict[str, Any], console: Console) -> None:
    """A snapshot for a pipe: one table each of shards, methods and worker threads, of all apps."""
    for index, listings in enumerate(zip(*map(_listings, snapshot["apps"]), strict=True)):
        if any(listing.rows for listing in listings):
            if index:
                console.print()
            show_plain(listings, console)
    if "cluster" in snapshot:
        console.print()
        show_plain([cluster_text.machines(snapshot["cluster"])], console)


def _listings(app: dict[str, Any]) -> tuple[Listing, Listing, Listing]:
    return _shards(app), _methods(app), _helpers(app)


def screen(
    snapshot: dict[str, Any], history: dict[str, list[float]], width: int, *, is_new: bool = True
) -> RenderableType:
    """A snapshot as one screen. history: app → calls a second, of the snapshots before; where this one is new, its rate
    is appended."""
    parts: list[RenderableType] = []
    hidden: set[str] = set()
    for app in snapshot["apps"]:
        rate = sum(method["now"]["calls"] for method in app["methods"])
        past = history.setdefault(app["name"], [])
        if is_new:
            past.append(rate)
            del past[:-40]
        parts.append(_heading(app, rate, past))
        if app.get("change") is not None:
            parts.append(Text(change_text(app["change"]), style="yellow", overflow="fold"))
        for shard in app["shards"]:
            if shard["durable"] is not None:
                style = "red" if shard["durable"]["failing"] else "dim"
                parts.append(Text(durable_text(shard["name"], shard["durable"]), style=style, overflow="fold"))
        for listing in _listings(app):
            table, left_out = listing.fitted(width)
            parts += [table] if listing.rows else []
            hidden |= set(left_out) - {"app"}
        parts += [part for part in (_hot_keys(app), _stalls(app)) if part is not None]
    if "cluster" in snapshot:
        cluster = snapshot["cluster"]
        parts.append(Text(cluster_text.heading(cluster), style="bold", overflow="fold"))
        parts += [Text(warning, style="yellow", overflow="fold") for warning in cluster_text.warnings(cluster)]
        table, left_out = cluster_text.machines(cluster).fitted(width)
        parts.append(table)
        hidden |= set(left_out)
    if snapshot["losses"]:
        losses = ", ".join(f"{loss['what']} {loss['count']:.0f}" for loss in snapshot["losses"])
        parts.append(Text(f"telemetry lost: {losses}", style="red"))
    if snapshot["refusals"]:
        rows = (f"{row['what']} {row['reason']} {row['count']:.0f}" for row in snapshot["refusals"])
        parts.append(Text(f"refused: {', '.join(rows)}", style="yellow", overflow="fold"))
    if hidden:
        parts.append(Text(f"not shown at {width} columns: {', '.join(sorted(hidden))}", style="dim"))
    return Group(*parts)


def _heading(app: dict[str, Any], rate: float, past: list[float]) -> Text:
    highest = max([*past, 1.0])
    bars = "".join(BARS[min(7, int(8 * rate_then / highest))] for rate_then in past)
    text = Text(f"{app['name']}", style="bold")
    text.append(f"  {app['listen']}  epoch {app['epoch']}  {rate:.0f} calls/s ", style="default")
    return text.append(bars, style="cyan")


def _shards(app: dict[str, Any]) -> Listing:
    listing = Listing(SHARD_COLUMNS)
    for shard in app["shards"]:
        listing.add(
            app["name"],
            shard["name"],
            Text(shard["state"], style=STYLES.get(shard["state"], "red")),
            *(str(shard[name]) for name in ("pid", "in_flight")),
            f"{100 * shard['load']:.0f} %",
            seconds(shard["lag_s"]),
            *(str(shard[name]) for name in ("calls", "forwarded", "connections", "steered", "restarts", "stalls")),
        )
    return listing


def _methods(app: dict[str, Any]) -> Listing:
    listing = Listing(METHOD_COLUMNS)
    for method in sorted(app["methods"], key=lambda method: -method["now"]["calls"]):
        now = method["now"]
        if not now["calls"]:
            listing.add(app["name"], method["name"], *[NO_CALLS] * 5)
            continue
        errors = Text(f"{now['errors']:.1f}", style="red" if now["errors"] else "default")
        quantiles = (seconds(now[p]) for p in ("p50", "p95", "p99"))
        listing.add(app["name"], method["name"], f"{now['calls']:.1f}", errors, *quantiles)
    return listing


def _hot_keys(app: dict[str, Any]) -> Text | None:
    keys = "  ".join(f"{row['key']} {row['calls']} ({row['shard']})" for row in app["hot_keys"][:5])
    return Text(f"hot keys: {keys}", style="dim", overflow="fold") if keys else None


def _helpers(app: dict[str, Any]) -> Listing:
    listing = Listing(HELPER_COLUMNS)
    for row in app["helpers"]:
        times = seconds(row["wait_p95"]), seconds(row["run_p95"])
        listing.add(app["name"], row["name"], row["shard"], str(row["depth"]), *times)
    return listing


def _stalls(app: dict[str, Any]) -> Text | None:
    stalls = [(stall["at_ns"], shard["name"], stall) for shard in app["shards"] for stall in shard["last_stalls"]]
    if not stalls:
        return None
    at_ns, shard, stall = max(stalls, key=lambda row: row[0])
    when = datetime.fromtimestamp(at_ns / 1e9).strftime("%H:%M:%S")
    line = f"last stall: {when} {shard} {stall['kind']} {seconds(stall['seconds'])} at {stall['where'] or '-'}"
    return Text(line, style="yellow", overflow="fold")


def traces(rows: list[dict[str, Any]], console: Console) -> None:
    """List the last traces, the newest first."""
    listing = Listing(TRACE_COLUMNS)
    for row in rows:
        when = datetime.fromtimestamp(row["start_ns"] / 1e9).strftime("%H:%M:%S")
        errors = Text(str(row["errors"]), style="red" if row["errors"] else "dim")
        # The beginning of the id is enough for `onelane trace`.
        listing.add(row["trace_id"][:16], when, row["name"], seconds(row["seconds"]), str(row["spans"]), errors)
    listing.show(console)


def spans_of(address: str, trace_id: str) -> list[dict[str, Any]]:
    """The spans of the trace whose id begins so, parents before their children.

    Raises:
        NotThere: no trace has an id that begins so, or several have.
    """
    spans: list[dict[str, Any]] = fetch(address, f"/traces/{quote(trace_id, safe='')}")["spans"]
    return spans


def trace(trace_id: str, spans: list[dict[str, Any]], console: Console) -> None:
    """Print one trace as a tree."""
    begin = min(span["start_ns"] for span in spans)
    root = Tree(Text(f"trace {trace_id}", style="bold"))
    # The root and the ancestors of the latest span; a span's parent has the index of the span's depth.
    path: list[Tree] = [root]
    for span in spans:
        del path[span["depth"] + 1 :]
        path.append(path[-1].add(_span_line(span, begin)))
    console.print(root, soft_wrap=not console.is_terminal)


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
