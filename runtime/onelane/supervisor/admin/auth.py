"""Who may use the admin address. Decided for each request before anything else is done with it.

On loopback without a token: whoever is on this machine, but not a page from elsewhere in their browser, which could
reach us by a name of its own (DNS rebinding) or send forms. With a token: who shows it, in a header or in the cookie
that the page sets. Beyond loopback without a token: nobody, but for /metrics and /healthz, which tell no secrets.
"""

import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from onelane.core import addresses

COMMANDS = "X-Onelane"
"""The header that a command carries. A page from elsewhere cannot send it: it would have to ask, and is not allowed."""
COOKIE = "onelane-token"
OPEN = ("/metrics", "/healthz")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def doorkeeper(host: str, token: str | None) -> Any:
    """A middleware. host: the address that is listened on."""
    is_local = ipaddress.ip_address(host).is_loopback

    @web.middleware
    async def keep(request: web.Request, handler: Handler) -> web.StreamResponse:
        if is_local and not _is_loopback(request.host):
            raise web.HTTPForbidden(text=f"{request.host!r} is no name of the loopback address\n")
        if request.method == "POST":
            _check_command(request)
        if request.path in OPEN or (is_local and token is None):
            return await handler(request)
        if token is None:
            raise web.HTTPForbidden(text="beyond loopback this needs a token: set ONELANE_ADMIN_TOKEN\n")
        return await _with_token(request, handler, token)

    return keep


async def _with_token(request: web.Request, handler: Handler, token: str) -> web.StreamResponse:
    if request.method == "GET" and _same(request.query.get("token", ""), token):
        # Into a cookie, and out of the address bar.
        answer = web.HTTPSeeOther(request.path)
        answer.set_cookie(COOKIE, token, httponly=True, samesite="Strict")
        raise answer
    shown = request.headers.get("Authorization", "").removeprefix("Bearer ") or request.cookies.get(COOKIE, "")
    if not _same(shown, token):
        told = "this needs the admin token: Authorization: Bearer TOKEN, or once /?token=TOKEN\n"
        raise web.HTTPUnauthorized(text=told, headers={"WWW-Authenticate": "Bearer"})
    return await handler(request)


def _same(shown: str, token: str) -> bool:
    # A header may hold bytes that are no text.
    return hmac.compare_digest(shown.encode("utf-8", "surrogateescape"), token.encode())


def _check_command(request: web.Request) -> None:
    if COMMANDS not in request.headers:
        raise web.HTTPForbidden(text=f"a command needs the header {COMMANDS}\n")
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != request.host:
        raise web.HTTPForbidden(text=f"a command from {origin} is not taken\n")


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
