"""The supervisor's own HTTP: the page, /metrics for Prometheus, /status as JSON, /healthz.

On loopback unless configured; `auth.py` decides which requests are served.
"""

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict

from aiohttp import web

from onelane.core import addresses
from onelane.errors import PortTaken
from onelane.server import sockets
from onelane.supervisor.admin.auth import auth_middleware
from onelane.supervisor.admin.page import Page
from onelane.supervisor.shard_state import ShardState
from onelane.supervisor.supervisor import Supervisor


@asynccontextmanager
async def serving(supervisor: Supervisor) -> AsyncIterator[str]:
    """Serve at the configured admin address; yields the address with its real port.

    Raises:
        PortTaken: another process listens there.
    """

    async def metrics(request: web.Request) -> web.Response:
        sums = request.query.get("by") == "app"
        body, content_type = await supervisor.metrics(request.headers.get("Accept", ""), sums=sums)
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def status(_: web.Request) -> web.Response:
        await supervisor.collect()
        return web.json_response(supervisor.status(details=True))

    async def healthz(_: web.Request) -> web.Response:
        shards = [shard for app in supervisor.apps for shard in app.shards]
        ready = sum(shard.state is ShardState.READY for shard in shards)
        return web.Response(status=200 if ready == len(shards) else 503, text=f"{ready}/{len(shards)} shards ready\n")

    async def reload(_: web.Request) -> web.Response:
        return web.json_response(asdict(await supervisor.reload()))

    async def restart(request: web.Request) -> web.Response:
        name = request.query.get("app")
        if name is not None and name not in {app.name for app in supervisor.apps}:
            return web.json_response({"fault": f"no app is called {name!r}"}, status=404)
        await supervisor.recycle(name)
        return web.json_response({"restarted": name or "all"})

    host, port = addresses.split(supervisor.config.admin)
    app = web.Application(middlewares=[auth_middleware(host, supervisor.config.admin_token)])
    app.add_routes([web.get("/metrics", metrics), web.get("/status", status), web.get("/healthz", healthz)])
    app.add_routes([web.post("/reload", reload), web.post("/restart", restart)])
    app.add_routes(Page(supervisor).routes())
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, host, port, shutdown_timeout=1.0)
    try:
        await site.start()
    except OSError as error:
        await runner.cleanup()
        if error.errno != errno.EADDRINUSE:
            raise
        raise PortTaken(f"{supervisor.config.admin} (admin)", sockets.holder_of(port) or "another process") from error
    try:
        yield addresses.join(host, runner.addresses[0][1])
    finally:
        await runner.cleanup()
