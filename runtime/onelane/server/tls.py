"""TLS and mutual TLS for listeners, with ALPN; certificates are looked at again while they serve."""

import asyncio
import logging
import os
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from onelane.config import Tls
from onelane.errors import BadConfig

log = logging.getLogger("onelane.tls")
LOOK_S = 1.0
"""How often the files are looked at."""
X509_NOT_YET_VALID, X509_EXPIRED = 9, 10
"""OpenSSL's numbers for a certificate before and after its time: x509_vfy.h."""


def server_context(settings: Tls, *, protocols: Sequence[str] = ("h2",)) -> ssl.SSLContext:
    """The context of a listener. With `client_ca`, a client without a certificate of it is refused.

    protocols: of ALPN, those that are wanted most first.

    Raises:
        BadConfig: a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([*protocols])
    load_files(context, settings)
    if settings.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class RenewedContext(ssl.SSLContext):
    """For the whole life of a server, or a channel: each handshake is made by the context that was built last.

    A context of OpenSSL cannot forget: an authority, once loaded, stays trusted, and a client whose session it knows
    need not show its certificate again.
    """

    newest: ssl.SSLContext

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        # What the event loops call for each connection.
        return self.newest.wrap_bio(*args, **kwargs)


def renewed_context(build: Callable[[], ssl.SSLContext]) -> tuple[RenewedContext, Callable[[], None]]:
    """A context for a server, and the function that builds its next one. Both raise as `build`."""
    context = RenewedContext(ssl.PROTOCOL_TLS_SERVER)
    context.newest = build()

    def renew() -> None:
        context.newest = build()

    return context, renew


async def reload_when_changed(settings: Tls, reload: Callable[[], None]) -> None:
    """Follow the files for ever: call `reload` once they have changed.

    reload: where it raises BadConfig it leaves in use what was.
    """
    seen = _stamps(settings)
    while True:
        await asyncio.sleep(LOOK_S)
        now = _stamps(settings)
        if now == seen:
            continue
        try:
            reload()
        except BadConfig as error:
            log.error("tls.reload_failed the certificates that were loaded before stay in use: %s", error)
            continue
        finally:
            seen = now
        log.info("tls.reloaded cert=%s", settings.cert)


def load_files(context: ssl.SSLContext, settings: Tls) -> None:
    """Load certificate and key, and `client_ca` as what peers are verified by.

    Raises:
        BadConfig: a file cannot be used.
    """
    _check_readable(settings)
    try:
        context.load_cert_chain(settings.cert, settings.key, password=_no_passphrase)
    except (OSError, ValueError) as error:
        raise BadConfig("tls", [_pair_fault(settings, error)]) from error
    try:
        if settings.client_ca is not None:
            context.load_verify_locations(settings.client_ca)
    except OSError as error:
        fault = f"client_ca: {settings.client_ca} has no certificate in PEM form ({error.strerror or error})"
        raise BadConfig("tls", [fault]) from error


def _check_readable(settings: Tls) -> None:
    faults = []
    for setting, name in (("cert", settings.cert), ("key", settings.key), ("client_ca", settings.client_ca)):
        try:
            if name is not None:
                Path(name).read_bytes()
        except OSError as error:
            faults.append(f"{setting}: {name} cannot be read: {error.strerror}")
    if faults:
        raise BadConfig("tls", faults)


def _no_passphrase() -> str:
    # OpenSSL would ask for it at the terminal, and wait.
    raise ValueError("it is encrypted")


def _pair_fault(settings: Tls, error: Exception) -> str:
    """Why OpenSSL refuses a certificate chain and its key."""
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return f"key: {settings.key} is not the key of the certificate in {settings.cert}"
    if not isinstance(error, OSError):
        return f"key: {settings.key} is encrypted, expected a key without a passphrase"
    if not _has_certificate(settings.cert):
        return f"cert: {settings.cert} has no certificate in PEM form"
    return f"key: {settings.key} has no private key in PEM form ({error.strerror or error})"


def _has_certificate(name: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(name)
    except OSError:
        return False
    return True


def validity_fault(settings: Tls) -> str:
    """Why clients refuse the certificate today: it has expired, or is not valid yet; "" where it is valid.

    OpenSSL is asked by a handshake in memory, because Python reads no dates from a file.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(settings.cert, settings.key, password=_no_passphrase)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(settings.cert)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)]
    # A handshake of TLS 1.3 takes the client two turns, and the server two.
    for end in ends * 2:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            is_of_dates = error.verify_code in (X509_NOT_YET_VALID, X509_EXPIRED)
            return f"cert: {settings.cert}: {error.verify_message}" if is_of_dates else ""
        except ssl.SSLError:
            return ""
    return ""


def _stamps(settings: Tls) -> list[tuple[int, int]]:
    stamps = []
    for name in (settings.cert, settings.key, settings.client_ca):
        try:
            stat = os.stat(name) if name else None
        except OSError:
            stat = None
        stamps.append((stat.st_mtime_ns, stat.st_ino) if stat else (0, 0))
    return stamps
