"""The routes of `onelane turns`: the list of the turns that an app holds, and the order to end one."""

from typing import Any

from aiohttp import web

from onelane.supervisor.admin.placement_commands import answering, parameter
from onelane.supervisor.supervisor import Supervisor


class TurnCommands:
    """See the module."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def routes(self) -> list[web.AbstractRouteDef]:
        return [web.get("/turns", answering(self.turns)), web.post("/turns/cancel", answering(self.cancel))]

    async def turns(self, request: web.Request) -> dict[str, Any]:
        return await self._supervisor.app(parameter(request, "app")).turns.turns()

    async def cancel(self, request: web.Request) -> dict[str, Any]:
        return await self._supervisor.app(parameter(request, "app")).turns.cancel(parameter(request, "key"))
