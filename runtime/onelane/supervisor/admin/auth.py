"""Authorization of requests to the admin address, before any other handling.

On loopback without a token: every user of this machine, but no web page of another origin in their browser, which could
reach us through its own host name (DNS rebinding) or by posting forms. With a token: requests that carry it in a header
or in the cookie that the page sets. At a Unix socket: the user of the supervisor. By TLS with `client_ca`: clients with
a certificate. Beyond loopback without a token: only /metrics and the three health checks, which hold no secrets.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from onelane.config import UNIX, Config
from onelane.core import addresses

log = logging.getLogger("onelane.supervisor")
GUESS_S = 0.5
"""How long a request with a wrong token waits for its answer."""
LOG_S = 1.0
COMMAND_HEADER = "X-Onelane"
"""A command needs this header. A page of another origin cannot send it: its browser would ask us first (by a CORS
preflight), and gets no permission."""
COOKIE = "onelane-token"
PUBLIC_PATHS = ("/metrics", "/livez", "/readyz", "/healthz")
AdminHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Unauthorized:
    """Requests without the admin token.

    One with a wrong token is answered late, so that tokens are guessed slowly, and the right token is served at once
    meanwhile: few wait, and a further one is refused without waiting and loses its connection.
    """

    def __init__(self, max_waiting: int, refused: Callable[[str], None]) -> None:
        """refused: told the reason of each, `unauthorized`."""
        self._refused = refused
        self._max_waiting = max_waiting
        self._waiting = 0
        self._unlogged = 0
        self._logged_at = -math.inf

    async def refusal(self, request: web.Request, *, is_guess: bool) -> web.HTTPException:
        """The answer of a request, in time."""
        self._tell(request)
        if is_guess and self._waiting >= self._max_waiting:
            refusal = web.HTTPTooManyRequests(text="too many requests with a wrong admin token\n")
            refusal.force_close()
            return refusal
        if is_guess:
            self._waiting += 1
            try:
                await asyncio.sleep(GUESS_S)
            finally:
                self._waiting -= 1
        text = "this needs the admin token: Authorization: Bearer TOKEN, or once /?token=TOKEN\n"
        return web.HTTPUnauthorized(text=text, headers={"WWW-Authenticate": "Bearer"})

    def _tell(self, request: web.Request) -> None:
        self._refused("unauthorized")
        now = time.monotonic()
        if now - self._logged_at < LOG_S:
            self._unlogged += 1
            return
        self._logged_at = now
        # Not the query, which may have a token.
        peer = request.remote or "unix"
        log.warning("admin.unauthorized peer=%s path=%s more=%d", peer, request.path, self._unlogged)
        self._unlogged = 0


def auth_middleware(config: Config, unauthorized: Unauthorized) -> Any:
    """An aiohttp middleware for the server at the admin address."""
    token, is_unix = config.admin_token, config.admin.startswith(UNIX)
    is_loopback = not is_unix and ipaddress.ip_address(addresses.split(config.admin)[0]).is_loopback
    # The user's alone; of this machine's users; of those whom an authority has given a certificate.
    is_closed = is_unix or is_loopback or (config.admin_tls is not None and config.admin_tls.client_ca is not None)

    @web.middleware
    async def authorize(request: web.Request, handler: AdminHandler) -> web.StreamResponse:
        if is_loopback and not _is_loopback(request.host):
            raise web.HTTPForbidden(text=f"{request.host!r} is no name of the loopback address\n")
        if request.method == "POST":
            _check_command(request)
        if request.path in PUBLIC_PATHS or (is_closed and token is None):
            return await handler(request)
        if token is None:
            raise web.HTTPForbidden(text="beyond loopback this needs a token: set ONELANE_ADMIN_TOKEN\n")
        return await _with_token(request, handler, token, unauthorized)

    return authorize


async def _with_token(
    request: web.Request, handler: AdminHandler, token: str, unauthorized: Unauthorized
) -> web.StreamResponse:
    if request.method == "GET" and _same(request.query.get("token", ""), token):
        # Move the token into a cookie, out of the address bar and its history.
        redirect = web.HTTPSeeOther(request.path)
        redirect.set_cookie(COOKIE, token, httponly=True, samesite="Strict", secure=request.secure)
        raise redirect
    candidate = request.headers.get("Authorization", "").removeprefix("Bearer ") or request.cookies.get(COOKIE, "")
    if not _same(candidate, token):
        is_guess = bool(candidate or request.query.get("token"))
        raise await unauthorized.refusal(request, is_guess=is_guess)
    return await handler(request)


def _same(candidate: str, token: str) -> bool:
    # aiohttp decodes header bytes that are no UTF-8 to surrogates; encode them back.
    # Hashed, because the time of the comparison would else tell the token's length.
    digests = [hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest() for text in (candidate, token)]
    return hmac.compare_digest(*digests)


def _check_command(request: web.Request) -> None:
    if COMMAND_HEADER not in request.headers:
        raise web.HTTPForbidden(text=f"a command needs the header {COMMAND_HEADER}\n")
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != request.host:
        raise web.HTTPForbidden(text=f"a command from {origin} is refused\n")


def _is_loopback(host: str) -> bool:
    name = (
        addresses.split(host)[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host.strip("[]")
    )
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
