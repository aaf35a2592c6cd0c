"""The commands that change the placement of an app: `onelane scale`, `onelane pin` and `onelane unpin`.

Each answers once the change is over: 200, 400 for what can never be, 404 for an app or a shard that is not there, 409
for what is not possible now. Nothing has changed then.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from onelane.core import keys
from onelane.errors import Invalid, NotThere
from onelane.supervisor.admin import progress
from onelane.supervisor.app import AppSupervisor
from onelane.supervisor.supervisor import Supervisor
from onelane.supervisor.target import NotChanged, scaled

PRINTABLE = re.compile(r"[!-~]+")
"""Of a key's canonical text."""
Command = Callable[[web.Request], Awaitable[dict[str, Any]]]


class PlacementCommands:
    """The routes of the module."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def routes(self) -> list[web.AbstractRouteDef]:
        return [
            web.post("/scale", self.scale_with_progress),
            web.post("/pin", answering(self.pin)),
            web.post("/unpin", answering(self.unpin)),
        ]

    async def scale_with_progress(self, request: web.Request) -> web.StreamResponse:
        apps = [app for app in self._supervisor.apps if app.name == request.query.get("app")]
        return await progress.answer(request, apps, answering(self.scale))

    async def scale(self, request: web.Request) -> dict[str, Any]:
        app, number = self._supervisor.app(parameter(request, "app")), parameter(request, "shards")
        if not re.fullmatch(r"[+-]?[0-9]{1,9}", number):
            raise Invalid(f"{number!r} is no number of shards")
        before = len(app.shards)
        await app.changes.reach(scaled(int(number)))
        waiting = sorted(set(app.changes.target.pins) - set(app.changes.target.placed_pins))
        return {"app": app.name, "before": before, "shards": len(app.shards), "waiting_pins": waiting}

    async def pin(self, request: web.Request) -> dict[str, Any]:
        name = parameter(request, "shard")
        app_name, _, index = name.rpartition("/")[2].rpartition("-")
        if not app_name or not re.fullmatch(r"[0-9]{1,9}", index):
            raise Invalid(f"{name!r} is no name of a shard: expected APP-NUMBER, as `onelane status` shows it")
        app = self._supervisor.app(app_name)
        key = _key(request, app.settings.max_key_bytes)
        await app.changes.pin(key, name)
        return {"app": app.name, "key": key, "shard": name}

    async def unpin(self, request: web.Request) -> dict[str, Any]:
        app = self._pinning(parameter(request, "key"), request.query.get("app"))
        key = _key(request, app.settings.max_key_bytes)
        await app.changes.unpin(key)
        return {"app": app.name, "key": key}

    def _pinning(self, key: str, name: str | None) -> AppSupervisor:
        """The app that has a pin for `key`. name: of the app that is meant.

        Raises:
            NotThere: none has. Invalid: several have.
        """
        if name is not None:
            return self._supervisor.app(name)
        apps = [app for app in self._supervisor.apps if app.changes.has_pin(key)]
        if not apps:
            raise NotThere(f"no app has a pin for the key {key!r}")
        if len(apps) > 1:
            raise Invalid(f"the key {key!r} is pinned in {', '.join(app.name for app in apps)}: name one by --app")
        return apps[0]


def answering(command: Command) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(request: web.Request) -> web.Response:
        try:
            return web.json_response(await command(request))
        except NotThere as error:
            return web.json_response({"fault": str(error)}, status=404)
        except Invalid as error:
            return web.json_response({"fault": str(error)}, status=400)
        except NotChanged as error:
            return web.json_response({"fault": str(error)}, status=409)

    return answer


def parameter(request: web.Request, name: str) -> str:
    value = request.query.get(name, "")
    if not value:
        raise Invalid(f"the parameter {name!r} is missing")
    return value


def _key(request: web.Request, limit: int) -> str:
    """The key of a request, as its canonical text."""
    text = parameter(request, "key")
    if PRINTABLE.fullmatch(text) is None:
        raise Invalid(f"the key {text!r} is not in its canonical text, {keys.canonical(text)!r}")
    if len(text) > limit:
        raise Invalid(f"the key is longer than max_key_bytes = {limit}")
    return text
