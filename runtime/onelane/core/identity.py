"""The identity of a call's client, as its credentials have proven it, and its two ways to another process.

A forwarded call carries it as a header of `core/hop`, which counts on a sibling's connection alone. A call to another
app carries an *assertion*: the identity, the app that makes the call, the app that is called and an end, with a MAC by
a key that the supervisor gives to its shards and to nobody else. Pure.
"""

import hashlib
import hmac
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

ASSERTION = "onelane-identity"
"""The metadata of a call from one app to another that have an assertion. No handler sees it."""
AUTHORIZATION = "authorization"
"""The metadata that have a client's token."""
ASSERTION_S = 60.0
"""How long an assertion holds: as long as a call may wait until it is sent."""
MIN_KEY_BYTES = 32
_CONTEXT = b"onelane identity assertion 1\n"
_MAC_DIGITS = 2 * hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True)
class Identity:
    """The client of a call, as its credentials have proven it."""

    subject: str = ""
    """A token's `sub`, a certificate's name as in `[apps.NAME.auth.mtls]`, or `app:NAME`; "" of an anonymous one."""
    roles: frozenset[str] = frozenset()
    proven_by: str = ""
    """The kind of the credentials: "jwt", "mtls" or "app"; "" for an anonymous one."""
    expires_at: float | None = None
    """When the credentials end, in seconds since the Unix epoch; None where they do not say."""

    @property
    def is_anonymous(self) -> bool:
        """It has shown no credentials."""
        return not self.proven_by


ANONYMOUS = Identity()


def own_account(app: str, roles: Iterable[str] = ()) -> Identity:
    """The identity of an app that calls for no client."""
    return Identity(f"app:{app}", frozenset(roles), "app")


@dataclass(frozen=True, slots=True)
class Assertion:
    """An app of the deployment says for whom it calls."""

    app: str
    """The app that makes the call."""
    identity: Identity | None
    """The client for whom it calls; None where it calls on its own account."""


def identity_of(context: Any) -> Identity:
    """The identity of the client of a call. context: the handler's, of any kind.

    Anonymous where the app has no `[apps.NAME.auth]`, or the client of a public method has shown no credentials.
    """
    return getattr(context, "identity", None) or ANONYMOUS


@lru_cache(1024)
def write_identity(identity: Identity) -> bytes:
    """An identity as the value of a header."""
    return _text(_fields(identity)).encode()


@lru_cache(1024)
def read_identity(value: bytes) -> Identity:
    """The identity in the value of a header.

    Raises:
        ValueError: it is malformed.
    """
    return _identity_of(json.loads(value))


def write_assertion(identity: Identity | None, *, app: str, to: str, key: bytes, now: float) -> str:
    """The assertion by which `app` calls the app `to`. identity: see `Assertion`. now: seconds since the Unix epoch."""
    expires_at = now + ASSERTION_S
    if identity is not None and identity.expires_at is not None:
        expires_at = min(expires_at, identity.expires_at)
    payload = _text([app, to, round(expires_at, 3), None if identity is None else _fields(identity)])
    return _mac(payload, key) + payload


def read_assertion(value: str, *, to: str, key: bytes, now: float) -> Assertion:
    """The assertion that was sent to the app `to`. key, now: as of `write_assertion`.

    Raises:
        ValueError: it was not written with the key, is for another app, or has expired.
    """
    mac, payload = value[:_MAC_DIGITS], value[_MAC_DIGITS:]
    if not hmac.compare_digest(mac.encode("utf-8", "replace"), _mac(payload, key).encode()):
        raise ValueError("the assertion is forged")
    app, audience, expires_at, fields = json.loads(payload)
    if audience != to:
        raise ValueError("the assertion is for another app")
    if now >= expires_at:
        raise ValueError("the assertion has expired")
    return Assertion(app, None if fields is None else _identity_of(fields))


def _mac(payload: str, key: bytes) -> str:
    if len(key) < MIN_KEY_BYTES:
        # An empty one, of a setup that has none: everybody could assert everything.
        raise ValueError("the assertion has no key that is a secret")
    return hmac.digest(key, _CONTEXT + payload.encode("utf-8", "replace"), "sha256").hex()


def _text(value: object) -> str:
    # ASCII without control characters, so that any header carries it.
    return json.dumps(value, separators=(",", ":"))


def _fields(identity: Identity) -> list[object]:
    return [identity.subject, sorted(identity.roles), identity.proven_by, identity.expires_at]


def _identity_of(fields: Any) -> Identity:
    try:
        subject, roles, proven_by, expires_at = fields
        return Identity(str(subject), _names(roles), str(proven_by), None if expires_at is None else float(expires_at))
    except TypeError as error:
        raise ValueError(f"malformed identity: {error}") from None


def _names(roles: Iterable[object]) -> frozenset[str]:
    return frozenset(map(str, roles))
