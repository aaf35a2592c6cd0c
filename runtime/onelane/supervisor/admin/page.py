"""The admin page, and the data behind it, as routes of the supervisor's own web server. See static/page.js.

What it is made of is in this package: nothing is fetched from elsewhere.
"""

import asyncio
import json
import time
from pathlib import Path

from aiohttp import web

from onelane.supervisor.admin.view import View
from onelane.supervisor.supervisor import Supervisor
from onelane.telemetry.collector.history import KEPT

STATIC = Path(__file__).parent / "static"
EVERY_S = 1.0
"""How often a page is told what has changed."""
OVERLAP = 3
"""Seconds of history in each event after the first, so that a late one leaves no gap."""
MAX_PAGES = 32
"""Pages that are live at once."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Page:
    """The routes of the page."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._view = View(supervisor.apps, supervisor.gathering)
        self._live = 0
        self._texts: dict[int, tuple[float, bytes]] = {}
        """Steps → when it was made, and an event that all pages share."""

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

    async def index(self, _: web.Request) -> web.FileResponse:
        return web.FileResponse(STATIC / "index.html", headers=HEADERS)

    async def snapshot(self, _: web.Request) -> web.Response:
        """All that the page shows, once, as JSON."""
        return web.json_response(self._view.snapshot(steps=OVERLAP))

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Snapshots as server-sent events, the first with all of the history."""
        if self._live >= MAX_PAGES:
            raise web.HTTPServiceUnavailable(text=f"{MAX_PAGES} pages are live already\n")
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await stream.prepare(request)
        self._live += 1
        steps = KEPT
        try:
            while True:
                await stream.write(self._event(steps))
                steps = OVERLAP
                await asyncio.sleep(EVERY_S)
        except ConnectionResetError:
            return stream
        finally:
            self._live -= 1

    def _event(self, steps: int) -> bytes:
        now = time.monotonic()
        made_at, text = self._texts.get(steps, (0.0, b""))
        if not text or now - made_at > EVERY_S / 2:
            text = f"event: snapshot\ndata: {json.dumps(self._view.snapshot(steps=steps))}\n\n".encode()
            self._texts[steps] = (now, text)
        return text

    async def traces(self, _: web.Request) -> web.Response:
        return web.json_response({"traces": self._supervisor.gathering.recent.summaries()})

    async def trace(self, request: web.Request) -> web.Response:
        """One trace, by its id or the beginning of it."""
        spans = self._supervisor.gathering.recent.trace(request.match_info["trace_id"])
        if spans is None:
            raise web.HTTPNotFound(text="there is no such trace, or several begin so\n")
        return web.json_response({"spans": spans})

    async def drain(self, request: web.Request) -> web.Response:
        return await self._command(request, "drain")

    async def restart(self, request: web.Request) -> web.Response:
        return await self._command(request, "restart")

    async def _command(self, request: web.Request, what: str) -> web.Response:
        """Begin to drain or restart a shard; the page sees by its state how that goes."""
        app, index = request.match_info["app"], request.match_info["index"]
        shards = next((keeper.shards for keeper in self._supervisor.apps if keeper.name == app), [])
        if not index.isdigit() or int(index) >= len(shards):
            raise web.HTTPNotFound(text=f"there is no shard {index} of an app {app!r}\n")
        if not self._supervisor.begin(what, app, int(index)):
            raise web.HTTPConflict(text=f"the shard is {shards[int(index)].state}, so it cannot {what} now\n")
        return web.json_response({"begun": what})
