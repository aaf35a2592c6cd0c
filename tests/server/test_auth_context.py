"""Clients with all kinds of certificates have the auth properties that grpcio's own server gives them."""

import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.bounds import BOUND_S
from tests.servers import Files, Handlers, lane_behind, stock_secure

GROUP = "ssl_negotiated_key_exchange_group"
"""Python's `ssl` does not tell it."""
Name = list[list[tuple[Any, str]]]
CN, ORG, UNIT = NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME
CLIENTS: dict[str, tuple[Name, list[x509.GeneralName]]] = {
    "a name alone": ([[(CN, "alone")]], []),
    "no name": ([], []),
    "hosts": ([[(CN, "host")]], [x509.DNSName("a.example"), x509.DNSName("*.b.example")]),
    "alternative names alone": ([], [x509.DNSName("a.example")]),
    "addresses": (
        [[(CN, "address")]],
        [x509.IPAddress(ipaddress.ip_address(text)) for text in ("10.0.0.1", "::1", "2001:db8::5:0:1")],
    ),
    "a workload": ([[(CN, "w")]], [x509.UniformResourceIdentifier("spiffe://example.org/ns/a/sa/b")]),
    "two workloads": ([[(CN, "w")]], [x509.UniformResourceIdentifier(f"spiffe://example.org/{n}") for n in "ab"]),
    "no workload": ([[(CN, "w")]], [x509.UniformResourceIdentifier("spiffe://example.org/")]),
    "mail, a directory, a number": (
        [[(CN, "m")]],
        [
            x509.RFC822Name("a@b.example"),
            x509.DirectoryName(x509.Name([x509.NameAttribute(CN, "directory")])),
            x509.RegisteredID(x509.ObjectIdentifier("1.2.3.4")),
        ],
    ),
    "a long subject": (
        [[(NameOID.COUNTRY_NAME, "CH")], [(ORG, "o")], [(UNIT, "u")], [(UNIT, "v")], [(CN, "ä, first")], [(CN, "b")]],
        [],
    ),
    "odd characters": ([[(ORG, '#a+b "c" <d>; \\e ')], [(UNIT, " f")], [(CN, "g\x7f\n")]], []),
    "parts of several values": ([[(ORG, "o"), (CN, "c")], [(UNIT, "u")]], []),
}


class Clients(Files):
    """A certificate for each of CLIENTS."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        authority = x509.load_pem_x509_certificate(self.ca.cert_pem.bytes())
        authority_key: Any = serialization.load_pem_private_key(self.ca.private_key_pem.bytes(), None)
        key = ec.generate_private_key(ec.SECP256R1())
        encoded = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        for name, (subject, alternative_names) in CLIENTS.items():
            parts = [
                x509.RelativeDistinguishedName([x509.NameAttribute(oid, value) for oid, value in part])
                for part in subject
            ]
            builder = x509.CertificateBuilder(authority.subject, x509.Name(parts), key.public_key())
            builder = builder.serial_number(x509.random_serial_number())
            builder = builder.not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
            builder = builder.not_valid_after(datetime(2120, 1, 1, tzinfo=UTC))
            if alternative_names:
                builder = builder.add_extension(x509.SubjectAlternativeName(alternative_names), critical=False)
            certificate = builder.sign(authority_key, hashes.SHA256())
            (folder / f"{name}.pem").write_bytes(certificate.public_bytes(encoded[0]))
            (folder / f"{name}.key").write_bytes(key.private_bytes(*encoded))


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Clients:
    return Clients(tmp_path_factory.mktemp("clients"))


seen: list[Any] = []


async def identify(request: bytes, context: Any) -> bytes:
    auth = {name: value for name, value in context.auth_context().items() if name != GROUP}
    seen.append((auth, context.peer_identity_key(), context.peer_identities()))
    return request


HANDLERS: dict[str, Any] = {"Identify": grpc.unary_unary_rpc_method_handler(identify)}


@asynccontextmanager
async def stock_with(clients: Clients, *, mutual: bool) -> AsyncIterator[str]:
    server = grpc.aio.server(handlers=[Handlers(**HANDLERS)])
    authority = clients.ca.cert_pem.bytes() if mutual else None
    port = server.add_secure_port(
        "127.0.0.1:0", grpc.ssl_server_credentials([clients.pair("server")], authority, mutual)
    )
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def identities(address: str, clients: Clients, names: list[str]) -> dict[str, Any]:
    """What the handler sees of each of these clients."""
    seen.clear()
    for name in names:
        async with stock_secure(address, clients, cert=name) as channel:
            await channel.unary_unary("/t.T/Identify")(b"x", timeout=BOUND_S)
    return dict(zip(names, seen, strict=True))


@pytest.mark.parametrize("listener", ["native", "grpcio"])
@pytest.mark.parametrize("mutual", [True, False], ids=["certificates", "no certificate"])
async def test_a_client_has_the_identity_that_grpcio_gives_it(clients: Clients, listener: str, mutual: bool) -> None:
    names = list(CLIENTS) if mutual else [""]
    settings = clients.tls(**({"client_ca": clients.path("ca.pem")} if mutual else {}))
    async with stock_with(clients, mutual=mutual) as address:
        expected = await identities(address, clients, names)
    async with lane_behind(listener, (), {"tls": vars(settings)}, **HANDLERS) as address:
        assert await identities(address, clients, names) == expected


async def test_what_a_handler_does_with_the_properties_is_no_matter_of_other_calls() -> None:
    async def change(request: bytes, context: Any) -> bytes:
        auth = context.auth_context()
        before = repr(auth)
        auth["security_level"].append(b"changed")
        auth.clear()
        return before.encode()

    async with (
        lane_behind("native", Change=grpc.unary_unary_rpc_method_handler(change)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        send: Any = channel.unary_unary("/t.T/Change")
        assert await send(b"x") == await send(b"x")
