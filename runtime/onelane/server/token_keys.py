"""The public keys of an issuer of tokens, each with the one kind of signature that it may check.

A key never checks a signature of another kind than its own: that is how a public RSA key was taken for a shared secret.
Only loaded where an app has `[apps.NAME.auth.jwt]`; needs the extra `onelane[auth]`.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

MAX_KEYS = 64
MIN_RSA_BITS = 2048
_OF_CURVE = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_OF_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_PARSERS: Mapping[str, Any] = {"RSA": RSAAlgorithm.from_jwk, "EC": ECAlgorithm.from_jwk, "OKP": OKPAlgorithm.from_jwk}


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """One public key."""

    key: Any
    """Of `cryptography`."""
    kid: str | None
    algorithms: frozenset[str]
    """Of the signatures that it may check."""


class TokenKeys:
    """The keys of one issuer. Immutable."""

    def __init__(self, keys: Collection[VerifyingKey], text: bytes) -> None:
        """text: that they were read from."""
        self.text = text
        self._keys = tuple(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, algorithm: str, kid: str | None) -> Any:
        """The one key for a signature; None where it is not known, or where several could be meant."""
        fitting = [key for key in self._keys if algorithm in key.algorithms]
        if kid is not None and any(key.kid is not None for key in fitting):
            fitting = [key for key in fitting if key.kid == kid]
        # One check for each token: no trying of keys.
        return fitting[0].key if len(fitting) == 1 else None


def parse_keys(text: bytes, algorithms: Collection[str]) -> TokenKeys:
    """The keys in a JWK set, or in PEM: public keys, certificates. Keys for other signatures than these are left out.

    Raises:
        ValueError: there is no key that could be used, a private one, or more than MAX_KEYS.
    """
    try:
        candidates = list(_keys_of_jwks(text) if text.lstrip().startswith(b"{") else _keys_of_pem(text))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    keys = [key for key in candidates if not key.algorithms.isdisjoint(algorithms)]
    if not keys:
        raise ValueError(f"it has no public key for {', '.join(sorted(algorithms))} (RSA from {MIN_RSA_BITS} bits on)")
    return TokenKeys(keys, text)


def _keys_of_jwks(text: bytes) -> Iterator[VerifyingKey]:
    content = json.loads(text)
    listed = content.get("keys", [content])
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise ValueError(f"expected a JWK set with at most {MAX_KEYS} keys")
    for jwk in listed:
        if not isinstance(jwk, dict):
            raise ValueError("a key of the JWK set is no object")
        if "d" in jwk or jwk.get("kty") == "oct":
            # Whoever can read it can make tokens.
            raise ValueError("it has a private key, or a shared secret; expected public keys alone")
        if (key := _key_of_jwk(jwk)) is not None:
            yield key


def _key_of_jwk(jwk: dict[str, Any]) -> VerifyingKey | None:
    """None of a key that is for something else (RFC 7517, section 5, asks to ignore it)."""
    kid = jwk.get("kid")
    if jwk.get("use", "sig") != "sig" or "verify" not in jwk.get("key_ops", ["verify"]):
        return None
    try:
        key = _PARSERS[jwk["kty"]](jwk)
    except Exception:
        return None
    algorithms = algorithms_of(key)
    if "alg" in jwk:
        algorithms &= {jwk["alg"]} if isinstance(jwk["alg"], str) else set()
    return VerifyingKey(key, kid if isinstance(kid, str) else None, algorithms)


def _keys_of_pem(text: bytes) -> Iterator[VerifyingKey]:
    if b"PRIVATE KEY" in text:
        raise ValueError("it has a private key; expected public keys alone")
    blocks = [block + b"-----END" + rest for block, rest in _pem_blocks(text)]
    if len(blocks) > MAX_KEYS:
        raise ValueError(f"expected at most {MAX_KEYS} keys")
    for block in blocks:
        certificate = b"BEGIN CERTIFICATE" in block
        key = x509.load_pem_x509_certificate(block).public_key() if certificate else load_pem_public_key(block)
        yield VerifyingKey(key, None, algorithms_of(key))


def _pem_blocks(text: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Before and after the mark of the end, of each block."""
    for part in text.split(b"-----BEGIN ")[1:]:
        body, _, end = part.partition(b"-----END")
        yield b"-----BEGIN " + body, end.split(b"\n")[0] + b"\n"


def algorithms_of(key: Any) -> frozenset[str]:
    """The signatures that a key of this type can check."""
    if isinstance(key, RSAPublicKey):
        return frozenset(_OF_RSA) if key.key_size >= MIN_RSA_BITS else frozenset()
    if isinstance(key, EllipticCurvePublicKey):
        return frozenset({_OF_CURVE.get(key.curve.name, "")}) - {""}
    return frozenset({"EdDSA"}) if isinstance(key, Ed25519PublicKey | Ed448PublicKey) else frozenset()
