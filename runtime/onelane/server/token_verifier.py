"""Checks bearer tokens: signature, issuer, audience and times, by the keys of one issuer.

Promises: a token that was checked is not checked again before it ends, nor a refused one for REFUSED_S; both memories
are bounded; the lane's time for checks is bounded (`signature_budget`). Only loaded where an app has
`[apps.NAME.auth.jwt]`; needs the extra `onelane[auth]`.
"""

from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from time import monotonic, time
from typing import Any

import jwt

from onelane.core.auth_settings import JwtSettings
from onelane.core.identity import Identity
from onelane.errors import NoTokenKeys, TokensNotChecked, Unauthenticated
from onelane.server.signature_budget import SignatureBudget
from onelane.server.token_keys import TokenKeys

MAX_TOKENS = 4096
"""Valid tokens that are remembered, by their hash; the one that was used least recently is forgotten."""
MAX_REFUSED = 1024
REFUSED_S = 10.0
"""How long a refused token is refused without a check: it may become valid, by its time or by a new key."""
MAX_KID = 256
_REQUIRED = ["exp", "iss", "aud", "sub"]


class JwtVerifier:
    """See the module, and `authenticator.TokenVerifier`. Owned by one lane."""

    def __init__(
        self,
        settings: JwtSettings,
        *,
        now: Callable[[], float] = time,
        clock: Callable[[], float] = monotonic,
        key_is_unknown: Callable[[], None] = lambda: None,
    ) -> None:
        """now: seconds since the Unix epoch. clock: for periods. key_is_unknown: called where a token names a key
        that is not known."""
        self._settings = settings
        self._now = now
        self._clock = clock
        self.key_is_unknown = key_is_unknown
        self._budget = SignatureBudget(settings.checks_per_s, clock())
        self._keys: TokenKeys | None = None
        self._valid: OrderedDict[bytes, Identity] = OrderedDict()
        self._refused: OrderedDict[bytes, tuple[str, float]] = OrderedDict()
        """Hash of a token → why it is refused, and until when that holds."""

    def use(self, keys: TokenKeys) -> None:
        """Check tokens by these keys from now on. What was checked by others is forgotten."""
        self._keys = keys
        self._valid.clear()
        self._refused.clear()

    def verify(self, token: str, peer: str) -> Identity:
        """See `authenticator.TokenVerifier`."""
        digest = sha256(token.encode()).digest()
        identity = self._valid.get(digest)
        if identity is not None and not self._has_ended(identity):
            self._valid.move_to_end(digest)
            return identity
        return self._check_once(digest, token, peer)

    def _has_ended(self, identity: Identity) -> bool:
        return identity.expires_at is not None and identity.expires_at <= self._now()

    def _check_once(self, digest: bytes, token: str, peer: str) -> Identity:
        """Check a token that is not remembered, if there is budget for it."""
        self._valid.pop(digest, None)
        if self._keys is None:
            raise NoTokenKeys
        at = self._clock()
        cause, until = self._refused.get(digest, ("", 0.0))
        if at < until:
            raise Unauthenticated(cause)
        if not self._budget.take(peer, at):
            raise TokensNotChecked
        try:
            identity = self._check(token, self._keys)
        except Exception as error:
            self._budget.note_failure(peer, at)
            cause = str(error) if isinstance(error, Unauthenticated) else _cause(error)
            _remember(self._refused, digest, (cause, at + REFUSED_S), MAX_REFUSED)
            raise Unauthenticated(cause) from None
        _remember(self._valid, digest, identity, MAX_TOKENS)
        return identity

    def _check(self, token: str, keys: TokenKeys) -> Identity:
        """The identity that a token proves.

        Raises:
            Exception: of whatever kind, it is not valid.
        """
        settings = self._settings
        header = jwt.get_unverified_header(token)
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in settings.algorithms:
            raise ValueError("its algorithm is not in auth.jwt.algorithms")
        if "crit" in header or (kid is not None and (not isinstance(kid, str) or len(kid) > MAX_KID)):
            raise ValueError("its header has what is not understood")
        key = keys.find(algorithm, kid)
        if key is None:
            self.key_is_unknown()
            raise ValueError("there is no key for it, or several that it could mean")
        claims = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            issuer=settings.issuer,
            audience=settings.audience,
            leeway=settings.leeway_s,
            options={"require": _REQUIRED},
        )
        # With the leeway: until then the client is one for other apps too.
        expires_at = float(claims["exp"]) + settings.leeway_s
        return Identity(claims["sub"], roles_in(claims, settings.roles_claim), "jwt", expires_at)


def _cause(error: Exception) -> str:
    """For the audit log. The texts of PyJWT and of this file name no secret."""
    return f"{type(error).__name__}: {error}" if isinstance(error, jwt.PyJWTError) else str(error)


def _remember(memory: "OrderedDict[bytes, Any]", digest: bytes, value: object, limit: int) -> None:
    memory[digest] = value
    if len(memory) > limit:
        memory.popitem(last=False)


def roles_in(claims: dict[str, Any], claim: str) -> frozenset[str]:
    """The roles in the claims of a token; none where it has no such claim.

    Raises:
        ValueError: they are neither a list of texts nor a text.
    """
    value: Any = claims.get(claim)
    if claim not in claims and "." in claim:
        value = claims
        for part in claim.split("."):
            value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        return frozenset()
    roles = value.split() if isinstance(value, str) else value
    if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
        raise ValueError("its roles are no list of texts")
    return frozenset(roles)
