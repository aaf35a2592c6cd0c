"""A token counts where its issuer has signed it for this app and for now; all others are refused, at a bounded cost."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from onelane.core.auth_settings import JwtSettings
from onelane.core.identity import Identity
from onelane.core.validation import checked
from onelane.errors import NoTokenKeys, TokensNotChecked, Unauthenticated
from onelane.server import token_verifier
from onelane.server.signature_budget import FAILURE_BURST
from onelane.server.token_keys import parse_keys
from onelane.server.token_verifier import JwtVerifier, roles_in

from tests.issuer import AUDIENCE, ISSUER, Issuer, unsigned

OWN = Issuer("RS256", "ES256", "EdDSA")
STRANGER = Issuer("RS256", "ES256", "EdDSA")
PEER = "ipv4:10.0.0.1:1"


class Clock:
    """Seconds since the epoch for `exp`, and since the start for budgets."""

    def __init__(self) -> None:
        self.passed = 0.0

    def epoch(self) -> float:
        return time.time() + self.passed

    def monotonic(self) -> float:
        return self.passed


def verifier(*, keys: Issuer | None = OWN, clock: Clock | None = None, **settings: Any) -> JwtVerifier:
    clock = clock or Clock()
    values = {"issuer": ISSUER, "audience": AUDIENCE, "keys_file": "k", "leeway_s": 0} | settings
    parsed = checked(JwtSettings, values)
    checking = JwtVerifier(parsed, now=clock.epoch, clock=clock.monotonic)
    if keys is not None:
        checking.use(parse_keys(keys.jwks(), parsed.algorithms))
    return checking


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens whose signature was checked."""
    checked: list[str] = []
    decode = jwt.decode

    def count(token: str, *arguments: Any, **more: Any) -> Any:
        checked.append(token)
        return decode(token, *arguments, **more)

    monkeypatch.setattr(jwt, "decode", count)
    return checked


@pytest.mark.parametrize("key", range(3))
def test_a_good_token_proves_its_subject_and_roles(key: int) -> None:
    expires_at = int(time.time()) + 60
    token = OWN.token("reader", "admin", key=key, exp=expires_at)
    identity = Identity("ann", frozenset({"reader", "admin"}), "jwt", float(expires_at))
    assert verifier().verify(token, PEER) == identity


def hmac_with_the_public_key() -> str:
    """Signed by the public key, as if that were a shared secret."""
    header = {"alg": "HS256", "typ": "JWT", "kid": "key-0"}
    body = unsigned(header, claims()).rpartition(".")[0]
    mac = hmac.digest(OWN.public_pem(0), body.encode(), hashlib.sha256)
    return f"{body}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def claims(**more: Any) -> dict[str, Any]:
    return {"iss": ISSUER, "aud": AUDIENCE, "sub": "eve", "exp": time.time() + 600, "roles": ["admin"]} | more


def with_changed_claims() -> str:
    header, _, signature = OWN.token("reader").split(".")
    body = base64.urlsafe_b64encode(json.dumps(claims()).encode()).rstrip(b"=").decode()
    return f"{header}.{body}.{signature}"


BAD: dict[str, Callable[[], str]] = {
    "no signature": lambda: unsigned({"alg": "none"}, claims()),
    "None as algorithm": lambda: unsigned({"alg": None}, claims()),
    "an algorithm in capitals": lambda: unsigned({"alg": "NONE"}, claims()),
    "a list as algorithm": lambda: unsigned({"alg": ["RS256"]}, claims()),
    "an empty signature": lambda: unsigned({"alg": "EdDSA", "kid": "key-2"}, claims()),
    "the public key as a shared secret": hmac_with_the_public_key,
    "a stranger's key": lambda: STRANGER.token("admin"),
    "a stranger's key in the header": lambda: STRANGER.token(
        "admin", header={"jwk": json.loads(STRANGER.jwks())["keys"][0]}
    ),
    "a stranger's url in the header": lambda: STRANGER.token("admin", header={"jku": "https://eve.example/keys"}),
    "another key of the issuer's": lambda: OWN.token("admin", header={"kid": "key-1"}),
    "an unknown key": lambda: OWN.token("admin", header={"kid": "key-9"}),
    "an endless key id": lambda: OWN.token("admin", header={"kid": "k" * 1000}),
    "changed claims": with_changed_claims,
    "another issuer": lambda: OWN.token("admin", iss="https://issuer.example.eve"),
    "no issuer": lambda: OWN.token("admin", iss=None),
    "for another audience": lambda: OWN.token("admin", aud="profile"),
    "for no audience": lambda: OWN.token("admin", aud=None),
    "for audiences without this one": lambda: OWN.token("admin", aud=["profile", "shopping"]),
    "expired": lambda: OWN.token("admin", exp=time.time() - 1),
    "without an end": lambda: OWN.token("admin", exp=None),
    "with an end that is no number": lambda: OWN.token("admin", exp="tomorrow"),
    "with an endless end": lambda: OWN.token("admin", exp=float("inf")),
    "not valid yet": lambda: OWN.token("admin", nbf=time.time() + 86_400),
    "without a subject": lambda: OWN.token("admin", sub=None),
    "with a subject that is no text": lambda: OWN.token("admin", sub=["ann"]),
    "with an extension that must be understood": lambda: OWN.token("admin", header={"crit": ["b64"], "b64": True}),
    "with roles of another kind": lambda: OWN.token(roles={"admin": True}),
    "with a role of another kind": lambda: OWN.token(roles=[["admin"]]),
    "empty": lambda: "..",
    "no json": lambda: "e30.e3.e3",
    "nested deeply": lambda: base64.urlsafe_b64encode(b"[" * 5000).decode().rstrip("=") + ".e30.e30",
}


@pytest.mark.parametrize("token", BAD)
def test_a_bad_token_is_refused_and_its_client_is_not_told_why(token: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        verifier().verify(BAD[token](), PEER)
    assert str(caught.value) == "the credentials are not valid"
    assert caught.value.cause


def test_a_token_whose_algorithm_is_not_listed_is_refused() -> None:
    with pytest.raises(Unauthenticated):
        verifier(algorithms=["ES256"]).verify(OWN.token("admin", key=0), PEER)


def test_the_issuers_clock_may_differ_by_the_leeway() -> None:
    lenient = verifier(leeway_s=30)
    identity = lenient.verify(OWN.token(exp=time.time() - 20), PEER)
    assert identity.expires_at is not None
    assert identity.expires_at > time.time()
    assert lenient.verify(OWN.token(nbf=time.time() + 20), PEER).subject == "ann"
    with pytest.raises(Unauthenticated):
        lenient.verify(OWN.token(exp=time.time() - 40), PEER)


@pytest.mark.parametrize(
    ("claim", "content", "roles"),
    [
        ("roles", {"roles": ["a", "b"]}, {"a", "b"}),
        ("scope", {"scope": "read  write"}, {"read", "write"}),
        ("realm_access.roles", {"realm_access": {"roles": ["a"]}}, {"a"}),
        ("https://i.example/roles", {"https://i.example/roles": ["a"]}, {"a"}),
        ("realm_access.roles", {"realm_access": "roles"}, set()),
        ("roles", {}, set()),
        ("roles", {"roles": None}, set()),
    ],
)
def test_roles_stand_in_the_claim_of_the_file(claim: str, content: dict[str, Any], roles: set[str]) -> None:
    assert roles_in(content, claim) == roles


def test_a_token_is_checked_once_until_it_expires(checks: list[str]) -> None:
    clock = Clock()
    verify, token = verifier(clock=clock).verify, OWN.token("admin", exp=time.time() + 60)
    assert {verify(token, PEER).subject for _ in range(100)} == {"ann"}
    assert len(checks) == 1
    clock.passed = 61
    # Checked anew, by PyJWT's own clock.
    verify(token, PEER)
    assert len(checks) == 2


def test_other_keys_forget_what_was_checked() -> None:
    checking = verifier()
    token = OWN.token("admin")
    checking.verify(token, PEER)
    checking.use(parse_keys(STRANGER.jwks(), ("RS256", "ES256", "EdDSA")))
    with pytest.raises(Unauthenticated):
        checking.verify(token, PEER)


def test_no_token_is_accepted_without_keys() -> None:
    with pytest.raises(NoTokenKeys):
        verifier(keys=None).verify(OWN.token("admin"), PEER)


def test_a_flood_of_forged_tokens_is_checked_no_more_than_the_budget_says(checks: list[str]) -> None:
    checking = verifier()
    signed, _, signature = OWN.token("admin", key=2).rpartition(".")
    outcomes: list[type[Exception]] = []
    for number in range(2000):
        with pytest.raises((Unauthenticated, TokensNotChecked)) as caught:
            checking.verify(f"{signed}.{number:08}{signature[8:]}", PEER)
        outcomes.append(caught.type)
    assert len(checks) == outcomes.count(Unauthenticated) == FAILURE_BURST
    # A neighbour is answered, and so is a client of the same address whose token is known.
    assert checking.verify(OWN.token("admin"), "ipv4:10.0.0.2:1").subject == "ann"


def test_a_client_whose_token_is_known_does_not_notice_the_flood_of_its_address() -> None:
    checking = verifier()
    token = OWN.token("admin")
    checking.verify(token, PEER)
    for number in range(int(FAILURE_BURST) + 10):
        with pytest.raises((Unauthenticated, TokensNotChecked)):
            checking.verify(f"a.b.{number}", PEER)
    assert checking.verify(token, PEER).subject == "ann"


def test_the_same_bad_token_is_checked_once_in_a_while(checks: list[str]) -> None:
    clock = Clock()
    checking, token = verifier(clock=clock), OWN.token(aud="profile")
    for _ in range(1000):
        with pytest.raises(Unauthenticated):
            checking.verify(token, PEER)
    assert len(checks) == 1
    clock.passed = token_verifier.REFUSED_S + 0.1
    with pytest.raises(Unauthenticated):
        checking.verify(token, PEER)
    assert len(checks) == 2


def test_the_tokens_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_verifier, "MAX_TOKENS", 10)
    monkeypatch.setattr(token_verifier, "MAX_REFUSED", 10)
    checking = verifier()
    for number in range(30):
        checking.verify(OWN.token(sub=f"user-{number}", key=2), f"ipv4:10.0.1.{number}:1")
        with pytest.raises(Unauthenticated):
            checking.verify(f"a.b.{number}", f"ipv4:10.0.0.{number}:1")
    assert (len(checking._valid), len(checking._refused)) == (10, 10)


def test_an_unknown_key_is_told() -> None:
    asked: list[bool] = []
    checking = verifier()
    checking.key_is_unknown = lambda: asked.append(True)
    with pytest.raises(Unauthenticated):
        checking.verify(BAD["an unknown key"](), PEER)
    assert asked
