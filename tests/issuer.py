"""An issuer of tokens for tests: its keys, as a JWK set or PEM, and tokens of all kinds, good and bad."""

import base64
import json
import time
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER, AUDIENCE = "https://issuer.example", "shop"
MAKERS: dict[str, Any] = {
    "RS256": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}
TO_JWK: dict[str, Any] = {"RS256": RSAAlgorithm.to_jwk, "ES256": ECAlgorithm.to_jwk, "EdDSA": OKPAlgorithm.to_jwk}


class Issuer:
    """Its keys have the ids `key-0`, `key-1` and so on."""

    def __init__(self, *algorithms: str) -> None:
        self._algorithms = algorithms or ("EdDSA",)

    @cached_property
    def keys(self) -> list[tuple[str, Any]]:
        """Made with the first use: a module that has an issuer is imported by processes that run none of its tests."""
        return [(algorithm, MAKERS[algorithm]()) for algorithm in self._algorithms]

    def jwks(self) -> bytes:
        keys = [
            TO_JWK[algorithm](key.public_key(), as_dict=True) | {"kid": f"key-{number}", "alg": algorithm, "use": "sig"}
            for number, (algorithm, key) in enumerate(self.keys)
        ]
        return json.dumps({"keys": keys}).encode()

    def write(self, file: Path) -> str:
        file.write_bytes(self.jwks())
        return str(file)

    def public_pem(self, number: int = 0) -> bytes:
        form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        pem: bytes = self.keys[number][1].public_key().public_bytes(*form)
        return pem

    def private_pem(self, number: int = 0) -> bytes:
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        pem: bytes = self.keys[number][1].private_bytes(*form)
        return pem

    def token(self, *roles: str, key: int = 0, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """claims: beside, or in place of, those of a good token; None leaves one out."""
        good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": time.time() + 600, "roles": list(roles)}
        content = {name: value for name, value in (good | claims).items() if value is not None}
        algorithm, private_key = self.keys[key]
        return jwt.encode(content, private_key, algorithm, headers={"kid": f"key-{key}"} | (header or {}))


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def unsigned(header: Any, claims: Any, signature: bytes = b"") -> str:
    """A token whose parts are these."""
    parts = (json.dumps(header).encode(), json.dumps(claims).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


class KeyServer:
    """Serves a JWK set by http, as a context manager; `answer` may be changed meanwhile."""

    def __init__(self, body: bytes) -> None:
        self.answer = (200, body)
        self.requests = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                status, body = outer.answer
                self.send_response(status)
                if status == 302:
                    self.send_header("location", "/elsewhere")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """The tests' output is theirs."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/keys"

    def __enter__(self) -> "KeyServer":
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
