"""The supervisor's own HTTP: the page, /metrics for Prometheus, /status as JSON, and three answers on its health.

/livez: it answers, which tells whether to restart the container. /readyz: each app has a shard that serves calls, and
owns keys. /healthz: every shard is ready and its store works; for people and alerts, as no restart mends a store or a
drain.

On loopback unless configured; `auth.py` decides which requests are served.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import cast

from aiohttp import web

from onelane.supervisor import descriptors
from onelane.supervisor.admin import progress
from onelane.supervisor.admin.auth import Unauthorized, auth_middleware
from onelane.supervisor.admin.call_console import CallConsole
from onelane.supervisor.admin.connections import MAX_CONNECTIONS, AdminConnection, AdminConnections
from onelane.supervisor.admin.listening import ADMIN_BACKLOG, listening
from onelane.supervisor.admin.page import Page
from onelane.supervisor.admin.placement_commands import PlacementCommands
from onelane.supervisor.admin.turn_commands import TurnCommands
from onelane.supervisor.restarts import NotRestarted
from onelane.supervisor.supervisor import Supervisor

HARDENED = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
MIN_CONNECTIONS = 8
"""Admin connections where the limit of open files is too low for all that the supervisor needs."""


@asynccontextmanager
async def serving(supervisor: Supervisor) -> AsyncIterator[str]:
    """Serve at the configured admin address; yields and raises as `listening`."""

    async def metrics(request: web.Request) -> web.Response:
        sums = request.query.get("by") == "app"
        body, content_type = await supervisor.metrics(request.headers.get("Accept", ""), sums=sums)
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def status(_: web.Request) -> web.Response:
        await supervisor.collections.wait_fresh()
        return web.json_response(supervisor.status(details=True, pins=True))

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def readyz(_: web.Request) -> web.Response:
        return _probed(*supervisor.readiness())

    async def healthz(_: web.Request) -> web.Response:
        return _probed(*supervisor.health())

    async def reload(_: web.Request) -> web.Response:
        return web.json_response(asdict(await supervisor.reload()))

    async def restart(request: web.Request) -> web.StreamResponse:
        name = request.query.get("app")
        apps = [app for app in supervisor.apps if name in (None, app.name)]
        if not apps:
            return web.json_response({"fault": f"no app is called {name!r}"}, status=404)
        return await progress.answer(request, apps, recycle)

    async def recycle(request: web.Request) -> web.Response:
        name = request.query.get("app")
        try:
            await supervisor.recycle(name)
        except NotRestarted as error:
            return web.json_response({"fault": str(error)}, status=409)
        return web.json_response({"restarted": name or "all"} | asdict(supervisor.file_differences()))

    async def leave(_: web.Request) -> web.Response:
        return web.json_response({"moved": await supervisor.leave()})

    config = supervisor.config
    room = _room(supervisor)
    connections = AdminConnections(room, supervisor.admin_refused)
    # A request that waits for its refusal holds a connection: of these most must stay free.
    unauthorized = Unauthorized(room // 4, supervisor.admin_refused)
    authorize = auth_middleware(config, unauthorized)
    app = web.Application(middlewares=[connections.serve, authorize])
    app.on_response_prepare.append(_harden)
    app.add_routes([web.get("/metrics", metrics), web.get("/status", status)])
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/healthz", healthz)])
    app.add_routes([web.post("/reload", reload), web.post("/restart", restart), web.post("/leave", leave)])
    app.add_routes(PlacementCommands(supervisor).routes())
    app.add_routes(TurnCommands(supervisor).routes())
    app.add_routes(CallConsole(supervisor).routes())
    app.add_routes(Page(supervisor).routes())
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    assert runner.server is not None
    new_handler = cast(Callable[[], web.RequestHandler], runner.server)

    def new_connection() -> AdminConnection:
        return AdminConnection(new_handler(), connections)

    try:
        async with listening(config, new_connection) as address:
            yield address
    finally:
        await runner.cleanup()
        connections.close()


def _probed(works: bool, text: str) -> web.Response:
    return web.Response(status=200 if works else 503, text=f"{text}\n")


async def _harden(request: web.Request, response: web.StreamResponse) -> None:
    """The headers of every response, of errors too: a browser runs nothing of it, and shows it in no other page."""
    if request.path.startswith("/static/"):
        # Else a browser would mix the scripts of two releases.
        response.headers.setdefault("Cache-Control", "no-cache")
    for name, value in HARDENED.items():
        response.headers.setdefault(name, value)
    response.headers["Server"] = "onelane"


def _room(supervisor: Supervisor) -> int:
    """How many connections there may be: the starts of shards need their descriptors whatever comes."""
    shards = sum(app.shard_count for app in supervisor.config.apps.values())
    free = descriptors.limit() - descriptors.needed(shards) - ADMIN_BACKLOG
    return max(MIN_CONNECTIONS, min(MAX_CONNECTIONS, free))
