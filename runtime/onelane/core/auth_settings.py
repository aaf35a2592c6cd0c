"""`[apps.NAME.auth]`: the credentials that an app accepts, and the roles that may call each of its methods. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal
from urllib.parse import urlsplit

from annotated_types import Ge, Le, MinLen

from onelane.core import addresses
from onelane.core.permissions import AUTHENTICATED, PUBLIC
from onelane.core.validation import Check, Checked

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Signatures by a private key alone. With a shared secret (HS256 and the like) everybody who verifies a token could
also make one, and a public key that is taken for such a secret lets everybody; `none` is no signature."""
_CERTIFICATE_NAME = r"spiffe://[^/\s]+/\S+|(CN|DNS|URI)=\S.*"


def _method_pattern(text: str) -> str:
    if not re.fullmatch(r"\*|[A-Za-z_][\w.]*\.\*|[A-Za-z_][\w.]*/(\w+\*?|\*)", text):
        raise ValueError(f'{text!r}: expected "pkg.Service/Method", "pkg.Service/Prefix*", "pkg.*" or "*"')
    return text


def _role(text: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]{1,128}", text):
        raise ValueError(f"{text!r}: expected a role of 1 to 128 printable ASCII characters without spaces")
    return text


def _granted_role(text: str) -> str:
    if _role(text) in (PUBLIC, AUTHENTICATED):
        raise ValueError(f"{text!r} stands for all clients in `methods`, and is no role that one has")
    return text


def _certificate_name(text: str) -> str:
    if not re.fullmatch(_CERTIFICATE_NAME, text):
        raise ValueError(f'{text!r}: expected "spiffe://domain/path", "URI=…", "DNS=…" or "CN=…"')
    return text


def _jwks_url(text: str) -> str:
    url = urlsplit(text)
    is_secure = url.scheme == "https" or (url.scheme == "http" and addresses.is_loopback(url.hostname or ""))
    if url.username is not None or url.password is not None:
        # Not shown: it has a secret.
        raise ValueError("expected a url without a user name and a password")
    if not url.hostname or url.fragment or not is_secure:
        raise ValueError("expected an https:// url; http:// only to a loopback address")
    return text


Role = Annotated[str, Check(_role)]
GrantedRole = Annotated[str, Check(_granted_role)]


@dataclass(frozen=True, kw_only=True)
class JwtSettings(Checked):
    """Bearer tokens: signed JWTs in the metadata `authorization`."""

    issuer: Annotated[str, MinLen(1)]
    """The token's `iss` must be exactly this."""
    audience: Annotated[str, MinLen(1)]
    """The token's `aud` must be this, or have it."""
    keys_file: str | None = None
    """The issuer's public keys: a JWK set, or public keys or certificates as PEM. It is read again when it changes."""
    jwks_url: Annotated[str, Check(_jwks_url)] | None = None
    """Where the issuer serves its JWK set, https. Instead of `keys_file`."""
    algorithms: Annotated[tuple[Algorithm, ...], MinLen(1)] = ("RS256", "ES256", "EdDSA")
    """The signatures that are accepted."""
    roles_claim: Annotated[str, MinLen(1)] = "roles"
    """The claim that has the roles: a list, or a text with spaces between them; `realm_access.roles` is a claim in a
    claim."""
    leeway_s: Annotated[float, Ge(0), Le(300)] = 10.0
    """By how many seconds the issuer's clock may differ, for `exp` and `nbf`."""
    checks_per_s: Annotated[float, Ge(1), Le(100_000)] = 1000.0
    """Signatures that one shard checks in a second, at 0.1 to 0.15 ms each; a further call with a token that the shard
    has not seen before ends with RESOURCE_EXHAUSTED."""
    refresh_s: Annotated[float, Ge(10), Le(86400)] = 300.0
    """After how many seconds `jwks_url` is read again."""

    def __post_init__(self) -> None:
        if (self.keys_file is None) == (self.jwks_url is None):
            raise ValueError("expected keys_file or jwks_url, and not both")


@dataclass(frozen=True, kw_only=True)
class AuthSettings(Checked):
    """The credentials that an app accepts, and the roles that may call each method."""

    methods: Mapping[Annotated[str, Check(_method_pattern)], tuple[Role, ...]]
    """"pkg.Service/Method", "pkg.Service/Prefix*", "pkg.Service/*", "pkg.*" or "*" → the roles that may call it; the
    most specific one decides. "public" is everybody, "authenticated" everybody with credentials. What is not named is
    refused."""
    jwt: JwtSettings | None = None
    """Which bearer tokens are accepted; by default none."""
    mtls: Mapping[Annotated[str, Check(_certificate_name)], tuple[GrantedRole, ...]] = field(default_factory=dict)
    """A name in the client's certificate → its roles: "spiffe://domain/path", "URI=…", "DNS=…", "CN=…". Needs
    `tls.client_ca`."""
    apps: Mapping[str, tuple[GrantedRole, ...]] = field(default_factory=dict)
    """Apps of the same supervisor whose calls are accepted → the roles of their calls on their own account. A call that
    such an app makes for a client has the client's identity."""

    def __post_init__(self) -> None:
        granted = {role for roles in (*self.mtls.values(), *self.apps.values()) for role in roles}
        wanted = {role for roles in self.methods.values() for role in roles} - {PUBLIC, AUTHENTICATED}
        # An app may pass on clients whose roles its own settings give; a token may have any role.
        if self.jwt is None and not self.apps and (missing := sorted(wanted - granted)):
            raise ValueError(
                f"methods: nobody can have the role {missing[0]!r}: there is no jwt, and mtls does not give it"
            )
