"""TLS and mutual TLS for channels, with ALPN `h2`."""

import ssl
from pathlib import Path


def client_context(
    *, ca: str | Path | None = None, cert: str | Path | None = None, key: str | Path | None = None
) -> ssl.SSLContext:
    """A TLS context for `Dialling.tls`.

    ca: verifies servers; None for the system's authorities. cert, key: of the client, for mutual TLS.

    Raises:
        OSError, ssl.SSLError: a file cannot be used.
    """
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    if cert is not None:
        context.load_cert_chain(cert, key)
    return context
