"""What TLS says of a client, as gRPC's auth properties: names and values are those of gRPC's C core.

Promises: any certificate that a handshake has accepted can be read. Leaves out `ssl_negotiated_key_exchange_group`,
which Python's `ssl` does not tell.
"""

import ssl
from collections.abc import Iterable
from ipaddress import ip_address
from types import MappingProxyType
from typing import Any

from onelane.core.hop import AuthContext

INSECURE: AuthContext = MappingProxyType(
    {"transport_security_type": [b"insecure"], "security_level": [b"TSI_SECURITY_NONE"]}
)
"""Of a connection without TLS."""
IDENTITY_KEYS = ("x509_subject_alternative_name", "x509_common_name")
"""The properties that identify a peer: the first that it has."""
_PROPERTY_OF_NAME = {"DNS": "peer_dns", "URI": "peer_uri", "email": "peer_email", "IP Address": "peer_ip"}
_SHORT_NAMES = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "givenName": "GN",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "street",
    "surname": "SN",
    "userId": "UID",
}
_ESCAPED = frozenset(b',+"\\<>;')
_MAX_SPIFFE_ID = 2048


def auth_context(connection: ssl.SSLObject) -> AuthContext:
    """The auth properties of a peer; those of its certificate where it has one."""
    return {
        "transport_security_type": [b"ssl"],
        **_properties_of_certificate(connection),
        "security_level": [b"TSI_PRIVACY_AND_INTEGRITY"],
        "ssl_session_reused": [b"true" if connection.session_reused else b"false"],
        "ssl_tls_version": [(connection.version() or "").encode()],
    }


def _properties_of_certificate(connection: ssl.SSLObject) -> dict[str, list[bytes]]:
    encoded, certificate = connection.getpeercert(binary_form=True), connection.getpeercert()
    if not encoded or not certificate:
        return {}
    subject: Any = certificate.get("subject", ())
    common_names = [value for part in subject for name, value in part if name == "commonName"]
    properties = {
        "x509_subject": [",".join(_distinguished_name(part) for part in reversed(subject)).encode()],
        "x509_common_name": [common_names[0].encode() if common_names else b""],
        "x509_pem_cert": [ssl.DER_cert_to_PEM_cert(encoded).encode()],
    }
    alternative_names: Any = certificate.get("subjectAltName", ())
    for kind, value in alternative_names:
        name = _text_of(kind, value)
        properties.setdefault("x509_subject_alternative_name", []).append(name)
        if kind in _PROPERTY_OF_NAME:
            properties.setdefault(_PROPERTY_OF_NAME[kind], []).append(name)
    uris = properties.get("peer_uri", ())
    if len(uris) == 1 and _is_spiffe_id(uris[0]):
        properties["peer_spiffe_id"] = [uris[0]]
    return properties


def _text_of(kind: str, value: Any) -> bytes:
    """A subject alternative name."""
    if kind not in _PROPERTY_OF_NAME:
        return b"other types of SAN"
    try:
        # Python writes an IPv6 address without `::`.
        return str(ip_address(value.strip())).encode() if kind == "IP Address" else value.encode()
    except ValueError:
        return b"other types of SAN"


def _is_spiffe_id(uri: bytes) -> bool:
    """Whether it has a trust domain and a path. Source: the SPIFFE-ID specification, as gRPC's core checks it."""
    scheme, _, rest = uri.partition(b"://")
    trust_domain, _, path = rest.partition(b"/")
    return scheme == b"spiffe" and 0 < len(trust_domain) <= 255 and bool(path) and len(uri) <= _MAX_SPIFFE_ID


def _distinguished_name(part: Iterable[tuple[str, str]]) -> str:
    """One part of a subject as RFC 2253 writes it."""
    return "+".join(f"{_SHORT_NAMES.get(name, name)}={_escaped(value)}" for name, value in reversed(list(part)))


def _escaped(value: str) -> str:
    raw = value.encode()
    last = len(raw) - 1
    characters = []
    for at, byte in enumerate(raw):
        if byte in _ESCAPED or (byte == 0x20 and at in (0, last)) or (byte == 0x23 and at == 0):
            characters.append(f"\\{byte:c}")
        else:
            characters.append(f"{byte:c}" if 0x20 <= byte < 0x7F else f"\\{byte:02X}")
    return "".join(characters)
