"""A command that takes a while, answered with its progress: one JSON object a line, the outcome last.

Only for a client that asks for it by `Accept: application/x-ndjson`; others get the outcome alone. The command goes on
where its client goes away.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aiohttp import web

from onelane.supervisor.app import AppSupervisor

PROGRESS_TYPE = "application/x-ndjson"
WATCH_S = 0.05
"""Between two looks at the shards."""
CHANGE_TOLD_S = 5.0
"""Between two lines on one change of placement."""
CommandHandler = Callable[[web.Request], Awaitable[web.Response]]


async def answer(request: web.Request, apps: Sequence[AppSupervisor], command: CommandHandler) -> web.StreamResponse:
    """The response of `command`, which changes some apps, after lines on its progress where the client wants them."""
    if PROGRESS_TYPE not in request.headers.get("Accept", ""):
        return await command(request)
    response = web.StreamResponse(headers={"Content-Type": PROGRESS_TYPE})
    await response.prepare(request)
    work = asyncio.ensure_future(command(request))
    try:
        await _tell(response, ShardNews(apps), work)
        outcome = await work
        await _write(response, {"status": outcome.status, "outcome": json.loads(str(outcome.text))})
    except ConnectionError:
        await work
    finally:
        # The supervisor stops.
        work.cancel()
    return response


async def _tell(response: web.StreamResponse, shards: "ShardNews", work: "asyncio.Future[web.Response]") -> None:
    while True:
        await asyncio.wait([work], timeout=WATCH_S)
        for line in shards.take():
            await _write(response, line)
        if work.done():
            return


async def _write(response: web.StreamResponse, line: dict[str, Any]) -> None:
    await response.write(json.dumps(line).encode() + b"\n")


class ShardNews:
    """What has happened to the shards of some apps since the last look."""

    def __init__(self, apps: Sequence[AppSupervisor]) -> None:
        self._apps = apps
        self._lives = {app.name: _lives(app, {}) for app in apps}
        self._looked_at = {app.name: time.monotonic() for app in apps}

    def take(self) -> list[dict[str, Any]]:
        """One object for each shard that was replaced, has joined or has left; and for a long change of placement."""
        lines = []
        for app in self._apps:
            before = self._lives[app.name]
            now = _lives(app, before)
            changed = differences(before, now)
            lines += changed
            self._lives[app.name] = now
            if changed:
                self._looked_at[app.name] = time.monotonic()
            elif time.monotonic() > self._looked_at[app.name] + CHANGE_TOLD_S:
                self._looked_at[app.name] = time.monotonic()
                if (change := app.changes.status()) is not None:
                    lines.append({"app": app.name, "change": change})
        return lines


def _lives(app: AppSupervisor, before: Mapping[str, int]) -> dict[str, int]:
    """Shard → its life, or while its next one starts the life before."""
    lives = {shard.member.name: shard.member.life if shard.is_up else None for shard in app.shards}
    known = {name: before.get(name) if life is None else life for name, life in lives.items()}
    return {name: life for name, life in known.items() if life is not None}


def differences(before: Mapping[str, int], now: Mapping[str, int]) -> list[dict[str, Any]]:
    """What has happened to each shard, by its life before and now."""
    lines: list[dict[str, Any]] = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old != new:
            event = "joined" if old is None else "left" if new is None else "replaced"
            lines.append({"shard": name, "event": event, "life": old if new is None else new})
    return lines
