"""The admin page, and the data behind it, as routes of the supervisor's own web server. See static/page.js.

All scripts and styles are in this package: the browser loads nothing from another host.
"""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from aiohttp import web

from onelane.supervisor.admin.view import View
from onelane.supervisor.supervisor import Supervisor
from onelane.telemetry.collector.history import HISTORY_STEPS

STATIC = Path(__file__).parent / "static"
SNAPSHOT_EVERY_S = 1.0
"""Between two snapshots that an open page is sent."""
OVERLAP = 3
"""Seconds of history in each event after the first, so that a late event leaves no gap."""
READ_S = 20.0
"""Time in which a page must read what it was sent; then its stream ends, and makes room for another."""
MAX_PAGES = 32
"""Open event streams at once."""


class Page:
    """The routes of the page."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._view = View(supervisor.apps, supervisor.collector, supervisor.config, self._cluster)
        self._open_streams = 0
        self._events: dict[int, tuple[float, bytes]] = {}
        """Steps of history → when the event was built (monotonic), and its bytes, which all pages share."""

    def routes(self) -> list[web.AbstractRouteDef]:
        return [
            web.get("/", self.index),
            web.get("/events", self.events),
            web.get("/snapshot", self.snapshot),
            web.get("/traces", self.traces),
            web.get("/traces/{trace_id}", self.trace),
            web.post("/shards/{app}/{index}/drain", self.drain),
            web.post("/shards/{app}/{index}/restart", self.restart),
            web.static("/static", STATIC),
        ]

    def _cluster(self) -> dict[str, Any] | None:
        return None if self._supervisor.cluster is None else self._supervisor.cluster.watch.status()

    async def index(self, _: web.Request) -> web.FileResponse:
        return web.FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    async def snapshot(self, _: web.Request) -> web.Response:
        """One snapshot, as JSON."""
        return web.json_response(self._view.snapshot(steps=OVERLAP))

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Snapshots as server-sent events, the first with the whole history."""
        if self._open_streams >= MAX_PAGES:
            raise web.HTTPServiceUnavailable(text=f"{MAX_PAGES} pages are open already\n")
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await stream.prepare(request)
        self._open_streams += 1
        steps = HISTORY_STEPS
        try:
            while True:
                async with asyncio.timeout(READ_S):
                    await stream.write(self._event(steps))
                steps = OVERLAP
                await asyncio.sleep(SNAPSHOT_EVERY_S)
        except (ConnectionResetError, TimeoutError):
            return stream
        finally:
            self._open_streams -= 1

    def _event(self, steps: int) -> bytes:
        now = time.monotonic()
        built_at, event = self._events.get(steps, (0.0, b""))
        if not event or now - built_at > SNAPSHOT_EVERY_S / 2:
            event = f"event: snapshot\ndata: {json.dumps(self._view.snapshot(steps=steps))}\n\n".encode()
            self._events[steps] = (now, event)
        return event

    async def traces(self, _: web.Request) -> web.Response:
        return web.json_response({"traces": self._supervisor.collector.recent_traces.summaries()})

    async def trace(self, request: web.Request) -> web.Response:
        """One trace, by its id or the beginning of it."""
        spans = self._supervisor.collector.recent_traces.trace(request.match_info["trace_id"])
        if spans is None:
            raise web.HTTPNotFound(text="there is no such trace, or several ids begin so\n")
        return web.json_response({"spans": spans})

    async def drain(self, request: web.Request) -> web.Response:
        return await self._command(request, "drain")

    async def restart(self, request: web.Request) -> web.Response:
        return await self._command(request, "restart")

    async def _command(self, request: web.Request, command: str) -> web.Response:
        """Begin to drain or restart a shard; the page shows the progress as the shard's state."""
        app_name, index = request.match_info["app"], request.match_info["index"]
        shards = next((app.shards for app in self._supervisor.apps if app.name == app_name), [])
        if not index.isdigit() or int(index) >= len(shards):
            raise web.HTTPNotFound(text=f"there is no shard {index} of an app {app_name!r}\n")
        if fault := self._supervisor.begin(command, app_name, int(index)):
            raise web.HTTPConflict(text=f"{fault}\n")
        return web.json_response({"begun": command})
