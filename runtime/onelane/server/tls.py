"""TLS and mutual TLS for listeners and channels, with ALPN `h2`; certificates are looked at again while they serve."""

import asyncio
import logging
import os
import ssl
from collections.abc import Callable

from onelane.config import Tls
from onelane.errors import BadConfig

log = logging.getLogger("onelane.tls")
LOOK_S = 1.0
"""How often the files are looked at."""


def server_context(settings: Tls) -> ssl.SSLContext:
    """The context of a listener. With `client_ca`, a client without a certificate of it is refused.

    Raises:
        BadConfig: a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    load(context, settings)
    if settings.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


async def reload_when_changed(settings: Tls, reload: Callable[[], None]) -> None:
    """Follow the files for ever: call `reload` once they have changed and can be used; a fault keeps what was."""
    seen = _stamps(settings)
    while True:
        await asyncio.sleep(LOOK_S)
        now = _stamps(settings)
        if now == seen:
            continue
        try:
            # Tried apart first: half of a bad pair would stay in the context that serves.
            server_context(settings)
            reload()
        except BadConfig as error:
            log.error("tls.reload_failed the certificates that were loaded before stay in use: %s", error)
            continue
        finally:
            seen = now
        log.info("tls.reloaded cert=%s", settings.cert)


def load(context: ssl.SSLContext, settings: Tls) -> None:
    """Let the handshakes that follow use what is in the files.

    Raises:
        BadConfig: a file cannot be used.
    """
    try:
        context.load_cert_chain(settings.cert, settings.key)
        if settings.client_ca is not None:
            context.load_verify_locations(settings.client_ca)
    except (OSError, ssl.SSLError) as error:
        files = [settings.cert, settings.key, *([settings.client_ca] if settings.client_ca else [])]
        raise BadConfig("tls", [f"{', '.join(files)}: {error.strerror or error}"]) from error


def _stamps(settings: Tls) -> list[tuple[int, int]]:
    stamps = []
    for name in (settings.cert, settings.key, settings.client_ca):
        try:
            stat = os.stat(name) if name else None
        except OSError:
            stat = None
        stamps.append((stat.st_mtime_ns, stat.st_ino) if stat else (0, 0))
    return stamps
