"""Where the admin server listens: at an IP address, in clear or by TLS, or at a Unix socket of its user alone."""

import asyncio
import contextlib
import errno
import functools
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ssl import SSLContext

from onelane.config import UNIX, Config, Tls
from onelane.core import addresses
from onelane.errors import BadConfig, PortTaken
from onelane.server import sockets, tls
from onelane.supervisor.admin.connections import AdminConnection

ADMIN_BACKLOG = 48
"""Connections that the event loop may accept in one go, before a descriptor of those that it closes is free."""
OWNER_ALONE = 0o177
"""The umask that gives a socket the mode 0600."""
ADMIN_ACCEPT_AGAIN_S = 0.1
NewConnection = Callable[[], AdminConnection]


@asynccontextmanager
async def listening(config: Config, new_connection: NewConnection) -> AsyncIterator[str]:
    """Accept connections at the configured address; yields it with its real port: `unix:path`, or a URL.

    Raises:
        PortTaken: another process listens there.
        BadConfig: a file of `admin_tls` cannot be used, or no socket can be made at a path.
    """
    if config.admin.startswith(UNIX):
        async with _at_path(config.admin.removeprefix(UNIX), new_connection):
            yield config.admin
    elif config.admin_tls is None:
        async with _at_port(config.admin, new_connection) as address:
            yield f"http://{address}"
    else:
        async with _by_tls(config.admin, config.admin_tls, new_connection) as address:
            yield f"https://{address}"


def admin_context(settings: Tls) -> SSLContext:
    """The context of an admin server.

    Raises:
        BadConfig: a file cannot be used.
    """
    try:
        return tls.server_context(settings, protocols=("http/1.1",))
    except BadConfig as error:
        raise BadConfig("admin_tls", error.faults) from error


@asynccontextmanager
async def _by_tls(admin: str, settings: Tls, new_connection: NewConnection) -> AsyncIterator[str]:
    """Not by a server of the loop: the number of its connections in their handshake would be unbounded."""
    context, renew = tls.renewed_context(functools.partial(admin_context, settings))
    loop = asyncio.get_running_loop()
    with _listening_at(admin) as sock:
        accepting = loop.create_task(_accept(sock, context, new_connection))
        following = loop.create_task(tls.reload_when_changed(settings, renew))
        try:
            yield addresses.join(*sock.getsockname()[:2])
        finally:
            following.cancel()
            accepting.cancel()
            await asyncio.wait([accepting])


async def _accept(sock: socket.socket, context: SSLContext, new_connection: NewConnection) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            accepted, _ = await loop.sock_accept(sock)
        except OSError:
            # The peer has gone, or no descriptor is left.
            await asyncio.sleep(ADMIN_ACCEPT_AGAIN_S)
            continue
        new_connection().secure(accepted, context)


@asynccontextmanager
async def _at_port(admin: str, new_connection: NewConnection) -> AsyncIterator[str]:
    sock = _listening_at(admin)
    server = await asyncio.get_running_loop().create_server(new_connection, sock=sock, backlog=ADMIN_BACKLOG)
    try:
        yield addresses.join(*sock.getsockname()[:2])
    finally:
        server.close()


def _listening_at(admin: str) -> socket.socket:
    host, port = addresses.split(admin)
    try:
        sock = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=ADMIN_BACKLOG
        )
    except OSError as error:
        holder = sockets.holder_of(port) if error.errno == errno.EADDRINUSE else ""
        raise PortTaken(f"{admin} (admin)", holder or f"somebody ({error.strerror})") from error
    sock.setblocking(False)
    return sock


@asynccontextmanager
async def _at_path(path: str, new_connection: NewConnection) -> AsyncIterator[None]:
    try:
        sock = _bound(path)
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EEXIST):
            raise PortTaken(f"{path} (admin)", f"somebody ({error.strerror})") from error
        raise BadConfig("admin", [f"no socket can be made at {path}: {error.strerror}"]) from error
    identity = os.stat(path).st_ino
    # Not `create_unix_server`, which would remove another's path; see server/native_listener.py.
    server = await asyncio.get_running_loop().create_server(new_connection, sock=sock, backlog=ADMIN_BACKLOG)
    try:
        yield
    finally:
        server.close()
        with contextlib.suppress(OSError):
            if os.stat(path).st_ino == identity:
                os.unlink(path)


def _bound(path: str) -> socket.socket:
    """A socket at this path that no other user may connect to. One that nobody listens at any more makes room.

    Raises:
        OSError: somebody listens there, or there is a file of another kind, or no folder for it.
    """
    _make_room(path)
    sock = socket.socket(socket.AF_UNIX)
    # Not `chmod` after `bind`: another user could connect in between.
    umask = os.umask(OWNER_ALONE)
    try:
        sock.bind(path)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(umask)
    sock.setblocking(False)
    return sock


def _make_room(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "a file that is no socket")
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
                return
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
