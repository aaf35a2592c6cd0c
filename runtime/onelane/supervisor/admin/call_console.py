"""The console of the page: the methods of an app, the owner of a key, and calls.

Each question is a process, `onelane.cli.page_calls`, since the supervisor loads no client. It connects as any client
does and has no identity of the supervisor's.

Promises: at most `MAX_QUESTIONS` processes at once, each ended at the latest `MAX_DEADLINE_S` and `START_S` after its
start, or when its page has gone; none reads more than `MAX_CALL_REQUEST_BYTES` or hands on more than
`MAX_CALL_ANSWER_BYTES`. Its request is in no command line, which other users could read.
"""

import asyncio
import base64
import json
import logging
import math
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

from aiohttp import web

from onelane.config import App
from onelane.core import addresses, keys
from onelane.errors import Invalid, NotThere, OnelaneError
from onelane.supervisor.admin.placement_commands import answering, parameter
from onelane.supervisor.admin.progress import PROGRESS_TYPE
from onelane.supervisor.app import AppSupervisor
from onelane.supervisor.supervisor import Supervisor

log = logging.getLogger("onelane.supervisor")
MODULE = "onelane.cli.page_calls"
MAX_QUESTIONS = 4
MAX_DEADLINE_S = 60.0
START_S = 15.0
"""Beside the deadline of its call: for the start of a process, and its questions to reflection."""
BODY_S = 20.0
"""Time in which a request must have come whole, and in which a page must take what it is sent."""
MAX_CALL_REQUEST_BYTES = 8 * 1024 * 1024
MAX_CALL_ANSWER_BYTES = 16 * 1024 * 1024
PIECE_BYTES = 65536
MAX_LOGGED_METHOD = 200
"""Characters of a method's name in the log."""
PRESENCE_S = 0.5
"""Between two looks whether the page is still there."""


class CallConsole:
    """See the module."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._questions = 0

    def routes(self) -> list[web.AbstractRouteDef]:
        return [
            web.post("/console/{app}/methods", answering(self.methods)),
            web.post("/console/{app}/call", self.call),
            web.get("/console/{app}/owner", answering(self.owner)),
        ]

    async def owner(self, request: web.Request) -> dict[str, Any]:
        """The owner of a key. parts: JSON of a list, for each field of the key a text, a number or {"base64": text}."""
        app = self._supervisor.app(request.match_info["app"])
        try:
            parts = tuple(_part(part) for part in json.loads(parameter(request, "parts")))
            key = keys.bounded(parts if len(parts) > 1 else parts[0], "the key", app.settings.max_key_bytes)
        except (OnelaneError, ValueError, TypeError, IndexError, RecursionError) as error:
            raise Invalid(f"no key: {error}") from error
        name = app.placement.owner_of(key).name
        state = next((shard.label for shard in app.shards if shard.member.name == name), "gone")
        return {"key": key, "owner": name, "state": state, "pinned": key in app.placement.pins}

    async def methods(self, request: web.Request) -> dict[str, Any]:
        """The methods of an app, each with its key as the file or its proto has it, and the types of its requests."""
        app = self._app(request)
        question = _common(app.settings, await _body(request))
        async with aclosing(self._pieces(request, question, time.monotonic() + START_S)) as pieces:
            lines = b"".join([piece async for piece in pieces]).split(b"\n")
        # Where it was cut off, the last line says why.
        text = next((line for line in reversed(lines) if line), b'{"fault": "its process has ended without an answer"}')
        document: dict[str, Any] = json.loads(text)
        if "fault" in document:
            raise Invalid(document["fault"])
        for method in document["methods"]:
            method["key"] = keys.configured_for(f"/{method['name']}", app.settings.keys) or method["key"]
        return document

    async def call(self, request: web.Request) -> web.StreamResponse:
        """Call a method; the response has a JSON object a line, each as soon as it is there."""
        try:
            app = self._app(request)
            body = await _body(request)
            question = _common(app.settings, body) | {"call": _checked_call(body)}
        except (Invalid, NotThere) as error:
            return web.json_response({"fault": str(error)}, status=404 if isinstance(error, NotThere) else 400)
        response = web.StreamResponse(headers={"Content-Type": PROGRESS_TYPE, "Cache-Control": "no-store"})
        await response.prepare(request)
        ends_at = time.monotonic() + question["call"]["deadline_s"] + START_S
        log.info("console.call app=%s method=%s", app.name, question["call"]["method"][:MAX_LOGGED_METHOD])
        with suppress(ConnectionResetError, TimeoutError):
            async with aclosing(self._pieces(request, question, ends_at)) as pieces:
                async for piece in pieces:
                    async with asyncio.timeout(BODY_S):
                        await response.write(piece)
        return response

    def _app(self, request: web.Request) -> AppSupervisor:
        """The app of a request, if the console may call it.

        Raises:
            NotThere: there is none. Invalid: it may not, or too many questions are under way.
        """
        app = self._supervisor.app(request.match_info["app"])
        if not self._supervisor.config.has_console:
            raise Invalid("the console is off; `console = true` turns it on")
        if not app.settings.serves_reflection:
            raise Invalid(f"{app.name} serves no reflection; `reflection = true` turns it on")
        if app.settings.tls is not None and app.settings.tls.client_ca is not None:
            raise Invalid(
                f"{app.name} wants a certificate of its clients (tls.client_ca), and the console has none: "
                f"`onelane call {addresses.reachable(app.settings.listen)} --cert FILE --cert-key FILE` calls it"
            )
        if self._questions >= MAX_QUESTIONS:
            raise Invalid(f"{MAX_QUESTIONS} calls of the console run already; wait for one of them")
        return app

    async def _pieces(
        self, request: web.Request, question: dict[str, Any], ends_at: float
    ) -> AsyncGenerator[bytes, None]:
        """What the process of a question prints, as far as there is time and room for it; else a last line says why."""
        self._questions += 1
        try:
            async with _started(question) as process:
                assert process.stdout is not None
                async with aclosing(_read(request, process.stdout, ends_at)) as pieces:
                    async for piece in pieces:
                        yield piece
        finally:
            self._questions -= 1


@asynccontextmanager
async def _started(question: dict[str, Any]) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", MODULE), stdin=PIPE, stdout=PIPE, start_new_session=True
    )
    try:
        assert process.stdin is not None
        # One that does not read its question does not answer either, and is ended for that.
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(START_S):
                process.stdin.write(json.dumps(question).encode())
                await process.stdin.drain()
        process.stdin.close()
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.wait())


async def _read(request: web.Request, stdout: asyncio.StreamReader, ends_at: float) -> AsyncGenerator[bytes, None]:
    size = 0
    reading = asyncio.ensure_future(stdout.read(PIECE_BYTES))
    try:
        while size <= MAX_CALL_ANSWER_BYTES:
            await asyncio.wait([reading], timeout=PRESENCE_S)
            if request.transport is None or request.transport.is_closing():
                return
            if reading.done():
                piece = reading.result()
                if not piece:
                    return
                size += len(piece)
                yield piece
                reading = asyncio.ensure_future(stdout.read(PIECE_BYTES))
            elif time.monotonic() > ends_at:
                yield _fault("the call has not ended in time, and was given up")
                return
        yield _fault(f"the answer is longer than {MAX_CALL_ANSWER_BYTES} bytes, and the call was ended")
    finally:
        reading.cancel()


def _fault(reason: str) -> bytes:
    """A line of its own, also after a line that is not whole."""
    return b"\n" + json.dumps({"fault": reason}).encode() + b"\n"


def _common(settings: App, body: dict[str, Any]) -> dict[str, Any]:
    """The part of a question that all have."""
    metadata = body.get("metadata", [])
    if not isinstance(metadata, list) or not all(isinstance(header, str) for header in metadata):
        raise Invalid("metadata: expected a list of texts, 'name: value'")
    return {
        "address": addresses.reachable(settings.listen),
        "tls": settings.tls is not None,
        "metadata": metadata,
    }


def _checked_call(body: dict[str, Any]) -> dict[str, Any]:
    method, request, deadline_s = body.get("method"), body.get("request"), body.get("deadline_s")
    if not isinstance(method, str) or not isinstance(request, str):
        raise Invalid("method, request: expected texts")
    is_number = isinstance(deadline_s, int | float) and math.isfinite(deadline_s)
    if not is_number or not 0 < float(deadline_s or 0) <= MAX_DEADLINE_S:
        raise Invalid(f"deadline_s: expected more than 0 and at most {MAX_DEADLINE_S:g} seconds")
    return {"method": method, "request": request, "deadline_s": deadline_s}


async def _body(request: web.Request) -> dict[str, Any]:
    """The JSON object in a request."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.content.iter_chunked(65536):
                body += chunk
                if len(body) > MAX_CALL_REQUEST_BYTES:
                    raise Invalid(f"the request is longer than {MAX_CALL_REQUEST_BYTES} bytes")
        document = json.loads(body)
    except TimeoutError as error:
        raise Invalid(f"the request has not come whole in {BODY_S:g} s") from error
    except (ValueError, RecursionError) as error:
        raise Invalid(f"the request is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise Invalid("expected a JSON object")
    return document


def _part(part: Any) -> keys.KeyPart:
    """One field of a key."""
    if isinstance(part, dict):
        return base64.b64decode(part["base64"], validate=True)
    if not isinstance(part, str | int) or isinstance(part, bool):
        raise TypeError("expected a text, a number or base64 for each field")
    return part
