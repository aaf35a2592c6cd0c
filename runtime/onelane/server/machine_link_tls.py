"""Mutual TLS of the links between machines, both ends of it; the files are looked at again while they are used.

Promises: TLS 1.3, and a certificate of the cluster's authorities at either end; no session is resumed, so every
connection shows its certificate; files that other machines would refuse are refused here, when they are loaded, and
those that were loaded before stay in use.
"""

import ssl
from typing import Any

from onelane.config import Tls
from onelane.core.machine_links import LinkFiles, MachineLinks
from onelane.errors import BadConfig
from onelane.server import tls

SOURCE = "cluster.tls"


class MachineLinkTls:
    """The contexts of one shard's links. `server` and `client` are None where links are insecure."""

    def __init__(self, links: MachineLinks) -> None:
        """
        Raises:
            BadConfig: a file cannot be used.
        """
        self.links = links
        self.server: tls.RenewedContext | None = None
        self.client: tls.RenewedContext | None = None
        if links.files is not None:
            self.server = tls.RenewedContext(ssl.PROTOCOL_TLS_SERVER)
            self.client = tls.RenewedContext(ssl.PROTOCOL_TLS_CLIENT)
            self.renew()

    def renew(self) -> None:
        """Load the files for the connections that follow.

        Raises:
            BadConfig: a file cannot be used; what was loaded before stays in use.
        """
        if self.server is None or self.client is None or self.links.files is None:
            return
        server, client = (
            _context(kind, self.links.files) for kind in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT)
        )
        _check(self.links, server, client)
        self.server.newest, self.client.newest = server, client

    async def follow(self) -> None:
        """Load the files again whenever they have changed, for ever."""
        if self.links.files is not None:
            await tls.reload_when_changed(_settings(self.links.files), self.renew)

    def fault_of(self, secured: ssl.SSLObject, machine: str = "") -> str:
        """Why the peer of a connection is refused; "" where it is none. See `MachineLinks.fault_of`."""
        return self.links.fault_of(_names(secured), machine)


def _settings(files: LinkFiles) -> Tls:
    return Tls(cert=files.cert, key=files.key, client_ca=files.ca)


def _context(kind: int, files: LinkFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(kind)
    # The name is one of ours, which OpenSSL would take for any that a wildcard covers: see `MachineLinks.fault_of`.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    if kind == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    try:
        tls.load_files(context, _settings(files))
    except BadConfig as error:
        raise BadConfig(SOURCE, [fault.removeprefix("client_") for fault in error.faults]) from error
    return context


def _check(links: MachineLinks, server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """Let this machine make a link with itself, in memory.

    Raises:
        BadConfig: another machine would refuse its certificate.
    """
    assert links.files is not None
    try:
        fault = links.fault_of(_names(_shake_hands(client, server)), links.machine)
    except ssl.SSLCertVerificationError as error:
        fault = f"other machines refuse it by {links.files.ca}: {error.verify_message}"
    except ssl.SSLError as error:
        fault = f"it cannot be used ({error.reason or error})"
    if fault:
        raise BadConfig(SOURCE, [f"cert: {links.files.cert}: {fault}"])


def _shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> ssl.SSLObject:
    """The client's end, once both ends have verified the other's certificate."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)]
    # A handshake of TLS 1.3 takes the client two turns, and the server two.
    for end in ends * 2:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return ends[0]


def _names(secured: ssl.SSLObject) -> list[str]:
    """The DNS names of a peer's certificate."""
    certificate: Any = secured.getpeercert() or {}
    return [name for kind, name in certificate.get("subjectAltName", ()) if kind == "DNS"]
