"""The supervisor's own HTTP: /metrics for Prometheus, /status as JSON, /healthz. On loopback unless configured."""

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from onelane import ports
from onelane.errors import PortTaken
from onelane.supervisor import Supervisor


@asynccontextmanager
async def serving(supervisor: Supervisor) -> AsyncIterator[str]:
    """Serve at the configured admin address; gives the address with its real port.

    Raises:
        PortTaken: somebody has it.
    """

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=await supervisor.metrics(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def status(_: web.Request) -> web.Response:
        await supervisor.collect()
        return web.json_response(supervisor.status(details=True))

    async def healthz(_: web.Request) -> web.Response:
        shards = [shard for app in supervisor.apps for shard in app.shards]
        ready = sum(shard.state == "ready" for shard in shards)
        return web.Response(status=200 if ready == len(shards) else 503, text=f"{ready}/{len(shards)} shards ready\n")

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics), web.get("/status", status), web.get("/healthz", healthz)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    host, port = ports.split(supervisor.config.admin)
    site = web.TCPSite(runner, host, port, shutdown_timeout=1.0)
    try:
        await site.start()
    except OSError as error:
        await runner.cleanup()
        if error.errno != errno.EADDRINUSE:
            raise
        raise PortTaken(f"{supervisor.config.admin} (admin)", ports.holder_of(port) or "somebody") from error
    try:
        yield ports.join(host, runner.addresses[0][1])
    finally:
        await runner.cleanup()
