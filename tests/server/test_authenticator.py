"""The identity of a call is the one that its credentials prove; credentials that prove none refuse the call."""

from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from onelane.core.auth_settings import AuthSettings
from onelane.core.identity import ANONYMOUS, ASSERTION, Identity, own_account, write_assertion
from onelane.core.validation import checked
from onelane.errors import Unauthenticated
from onelane.server.authenticator import MAX_TOKEN, Authenticator
from onelane.testing.listener import MemoryCall

KEY, NOW = b"k" * 32, 1000.0
ANN = Identity("ann", frozenset({"admin"}), "jwt", NOW + 600)
SPIFFE = "spiffe://example.org/orders"


class ClientCall(MemoryCall):
    """A call of a client with a certificate."""

    def __init__(self, *metadata: tuple[str, str], **certificate: bytes) -> None:
        super().__init__("/t.T/M", metadata, trusted=False, deadline_s=None)
        self.properties = {name: [value] for name, value in certificate.items()}

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return self.properties


class Tokens:
    """Accepts one token alone."""

    def verify(self, token: str, peer: str) -> Identity:
        if token != "g.o.od":
            raise Unauthenticated("it is not good")
        return ANN


def authenticator(*, tokens: bool = True, apps: Any = None) -> Authenticator:
    settings = checked(
        AuthSettings,
        {
            "methods": {"*": ["admin"]},
            "mtls": {SPIFFE: ["admin"], "CN=orders": ["reader"], "DNS=o.example": ["reader"], "URI=urn:o": ["writer"]},
            "apps": {"lobby": ["reader"]} if apps is None else apps,
        },
    )
    return Authenticator(settings, app="shop", key=KEY, tokens=Tokens() if tokens else None, now=lambda: NOW)


def asserted(identity: Identity | None = ANN, *, app: str = "lobby", to: str = "shop") -> tuple[str, str]:
    return (ASSERTION, write_assertion(identity, app=app, to=to, key=KEY, now=NOW))


GOOD = ("authorization", "Bearer g.o.od")


@pytest.mark.parametrize("value", ["Bearer g.o.od", "bearer g.o.od", "BEARER   g.o.od "])
def test_a_bearer_token_proves_an_identity(value: str) -> None:
    assert authenticator().identify(ClientCall(("authorization", value))) == ANN


REFUSED = {
    "a bad token": [("authorization", "Bearer b.a.d")],
    "two tokens": [GOOD, GOOD],
    "a bad token beside a good certificate": [("authorization", "Bearer b.a.d")],
    "a password": [("authorization", "Basic YTpi")],
    "a token without its scheme": [("authorization", "g.o.od")],
    "a token of two parts": [("authorization", "Bearer g.o")],
    "an encrypted token": [("authorization", "Bearer a.b.c.d.e")],
    "nothing": [("authorization", "")],
    "a token and more": [("authorization", "Bearer g.o.od, Bearer g.o.od")],
    "a token with a control character": [("authorization", "Bearer g.o.od\t")],
    "an endless token": [("authorization", "Bearer g.o." + "d" * MAX_TOKEN)],
    "a forged assertion": [(ASSERTION, asserted()[1].replace("ann", "eve"))],
    "an assertion for another app": [asserted(to="profile")],
    "an assertion of an app that is not listed": [asserted(app="billing")],
    "two assertions": [asserted(), asserted()],
    "an assertion without an end": [(ASSERTION, "x" * 5000)],
}


@pytest.mark.parametrize("name", REFUSED)
def test_credentials_that_prove_nothing_refuse_the_call_whatever_it_has_beside(name: str) -> None:
    with pytest.raises(Unauthenticated):
        authenticator().identify(ClientCall(*REFUSED[name], peer_spiffe_id=SPIFFE.encode()))


def test_an_app_without_tokens_leaves_that_metadata_to_its_handlers() -> None:
    call = ClientCall(("authorization", "Basic YTpi"), x509_common_name=b"orders")
    assert authenticator(tokens=False).identify(call).subject == "CN=orders"
    assert call.metadata == (("authorization", "Basic YTpi"),)


@pytest.mark.parametrize(
    ("certificate", "subject", "roles"),
    [
        ({"peer_spiffe_id": SPIFFE.encode(), "x509_common_name": b"orders"}, SPIFFE, {"admin", "reader"}),
        ({"x509_common_name": b"orders"}, "CN=orders", {"reader"}),
        ({"peer_dns": b"o.example"}, "DNS=o.example", {"reader"}),
        ({"peer_uri": b"urn:o"}, "URI=urn:o", {"writer"}),
        ({"x509_common_name": b"Orders"}, "", set()),
        ({"x509_common_name": b"spiffe://example.org/orders"}, "", set()),
        ({"peer_dns": b"orders"}, "", set()),
        ({"x509_common_name": b"orders\xff"}, "", set()),
        ({"x509_common_name": b"orders\x00"}, "", set()),
        ({}, "", set()),
    ],
)
def test_a_certificate_has_the_roles_of_its_names_and_only_where_they_are_of_that_kind(
    certificate: dict[str, bytes], subject: str, roles: set[str]
) -> None:
    identity = authenticator().identify(ClientCall(**certificate))
    assert (identity.subject, identity.roles, identity.is_anonymous) == (subject, frozenset(roles), not subject)


def test_a_token_counts_more_than_an_assertion_and_that_more_than_a_certificate() -> None:
    call = ClientCall(GOOD, asserted(Identity("bob", frozenset(), "jwt")), x509_common_name=b"orders")
    assert authenticator().identify(call) == ANN
    call = ClientCall(asserted(Identity("bob", frozenset(), "jwt")), x509_common_name=b"orders")
    assert authenticator().identify(call).subject == "bob"


def test_an_app_calls_for_its_client_or_on_its_own_account_with_its_own_roles() -> None:
    assert authenticator().identify(ClientCall(asserted())) == ANN
    assert authenticator().identify(ClientCall(asserted(None))) == Identity("app:lobby", frozenset({"reader"}), "app")
    # A client of the other app that was anonymous there has nobody's roles.
    assert authenticator().identify(ClientCall(asserted(ANONYMOUS))) == ANONYMOUS


def test_no_handler_sees_an_assertion() -> None:
    call = ClientCall(("a", "1"), asserted(), ("b", "2"))
    authenticator().identify(call)
    assert call.metadata == (("a", "1"), ("b", "2"))


def test_a_sibling_calls_for_its_client_or_for_nobody() -> None:
    assert authenticator(apps={}).of_sibling(ClientCall(asserted(app="shop"))) == ANN
    assert authenticator().of_sibling(ClientCall()) == own_account("shop")
    assert authenticator().of_sibling(ClientCall(asserted(None, app="shop"))) == own_account("shop")
    with pytest.raises(Unauthenticated):
        authenticator().of_sibling(ClientCall(asserted(app="lobby")))
