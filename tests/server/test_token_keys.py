"""Keys are taken as public keys for their own kind of signature, or not at all."""

import json
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from onelane.server.token_keys import MAX_KEYS, parse_keys

from tests.issuer import Issuer

ALL = ("RS256", "PS256", "ES256", "EdDSA")
ISSUER = Issuer("RS256", "ES256", "EdDSA")
JWKS: list[dict[str, Any]] = json.loads(ISSUER.jwks())["keys"]


def jwks(*keys: Any) -> bytes:
    return json.dumps({"keys": keys}).encode()


def test_a_key_of_a_set_checks_the_signatures_that_it_is_for() -> None:
    keys = parse_keys(ISSUER.jwks(), ALL)
    assert len(keys) == 3
    assert keys.find("RS256", "key-0") is not None
    # Its `alg` says RS256.
    assert keys.find("PS256", "key-0") is None
    assert keys.find("ES256", "key-0") is None
    assert keys.find("ES256", "key-1") is not None
    assert keys.find("EdDSA", None) is not None


def test_a_key_is_never_guessed() -> None:
    keys = parse_keys(Issuer("EdDSA", "EdDSA").jwks(), ALL)
    assert keys.find("EdDSA", None) is None
    assert keys.find("EdDSA", "key-2") is None
    assert keys.find("EdDSA", "key-1") is not None


def test_pem_has_public_keys_and_certificates() -> None:
    issued = trustme.CA().issue_cert("issuer.example").cert_chain_pems[0].bytes()
    keys = parse_keys(b"a comment\n" + ISSUER.public_pem(0) + issued + ISSUER.public_pem(2), ALL)
    assert len(keys) == 3
    assert keys.find("PS256", "any") is not None
    assert keys.find("EdDSA", None) is not None


WEAK = RSAAlgorithm.to_jwk(rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key(), as_dict=True)
USELESS: dict[str, bytes] = {
    "nothing": b"",
    "no set": b"[]",
    "an empty set": jwks(),
    "no key": jwks({"kty": "RSA"}, {"kty": "??"}, {}),
    "a key that is no object": jwks("key"),
    "keys that are no list": b'{"keys": 7}',
    "a key for encryption": jwks(JWKS[0] | {"use": "enc"}),
    "a key that only signs": jwks(JWKS[0] | {"key_ops": ["sign"]}),
    "a key for another signature": jwks(JWKS[0] | {"alg": "HS256"}),
    "a shared secret": jwks(JWKS[0], {"kty": "oct", "k": "c2VjcmV0"}),
    "a private key": jwks(JWKS[0], JWKS[2] | {"d": "AA"}),
    "a private key in PEM": ISSUER.public_pem() + ISSUER.private_pem(),
    "a weak key": jwks(WEAK),
    "half a file": ISSUER.jwks()[:200],
    "half a PEM": ISSUER.public_pem()[:100],
    "too many keys": jwks(*[JWKS[0]] * (MAX_KEYS + 1)),
    "too many keys in PEM": ISSUER.public_pem(2) * (MAX_KEYS + 1),
    "deep nesting": b'{"keys": ' + b"[" * 100_000,
}


@pytest.mark.parametrize("text", USELESS)
def test_what_is_no_set_of_public_keys_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - some come from the parsers
        parse_keys(USELESS[text], ALL)


def test_a_set_may_have_keys_for_something_else_beside() -> None:
    assert len(parse_keys(jwks(JWKS[1], {"kty": "new"}, JWKS[0] | {"use": "enc"}), ALL)) == 1
