"""Who a call's client is, by the credentials that came with it.

Promises: credentials that are shown and are not valid refuse the call, whatever else it shows; of several kinds one
counts: a token, else the assertion of another app, else the certificate. What cannot be understood is refused.
"""

import re
from collections.abc import Callable, Iterator
from typing import Protocol

from onelane.core.auth_settings import AuthSettings
from onelane.core.hop import AuthContext
from onelane.core.identity import ANONYMOUS, ASSERTION, AUTHORIZATION, Assertion, Identity, own_account, read_assertion
from onelane.errors import Unauthenticated
from onelane.server.call import Call, Metadata

MAX_TOKEN = 8192
"""Characters of a token. Looking at one costs with its length, also where it is refused."""
_BEARER = re.compile(r"bearer +([A-Za-z0-9_=-]+\.[A-Za-z0-9_=-]+\.[A-Za-z0-9_=-]+) *", re.IGNORECASE)
_CERTIFICATE_PROPERTIES = (
    ("peer_spiffe_id", ""),
    ("peer_uri", "URI="),
    ("peer_dns", "DNS="),
    ("x509_common_name", "CN="),
)
"""The auth properties that name a peer, with what precedes such a name in `[apps.NAME.auth.mtls]`; gRPC's order."""


class TokenVerifier(Protocol):
    """Checks tokens."""

    def verify(self, token: str, peer: str) -> Identity:
        """The identity that a token proves. peer: gRPC's name of the client's address.

        Raises:
            Unauthenticated: the token is not valid.
            TokensNotChecked, NoTokenKeys: it was not checked.
        """


class TokenKeysFollower(Protocol):
    """Keeps the keys of a verifier as their issuer has them."""

    def load(self) -> None:
        """Load those in a file.

        Raises:
            BadConfig: the file cannot be used.
        """

    async def start(self) -> None:
        """Load those that are fetched, and follow the changes of all."""

    async def aclose(self) -> None:
        """Follow them no more."""


class Authenticator:
    """See the module. Owned by one lane."""

    def __init__(
        self, settings: AuthSettings, *, app: str, key: bytes, tokens: TokenVerifier | None, now: Callable[[], float]
    ) -> None:
        """app: its name, for which assertions are. key: of assertions. tokens: None where no token is accepted.
        now: seconds since the Unix epoch."""
        self._app = app
        self._key = key
        self._tokens = tokens
        self._now = now
        self._apps = settings.apps
        self._certificates = settings.mtls

    @property
    def takes_tokens(self) -> bool:
        return self._tokens is not None

    def identify(self, call: Call) -> Identity:
        """The identity of the client of a call; anonymous where it shows nothing.

        Raises:
            Unauthenticated, TokensNotChecked, NoTokenKeys: it shows something that does not prove an identity.
        """
        assertion = take_assertion(call)
        if self._tokens is not None and (header := _only(AUTHORIZATION, call.metadata)) is not None:
            return self._tokens.verify(_token_in(header), call.peer())
        if assertion is not None:
            return self._asserted(assertion)
        return self._by_certificate(call.auth_context()) if self._certificates else ANONYMOUS

    def of_sibling(self, call: Call) -> Identity:
        """The identity for which another shard of this app calls; the app's own where it is for no client.

        Raises:
            Unauthenticated: its assertion is not valid.
        """
        assertion = take_assertion(call)
        if assertion is None:
            return own_account(self._app)
        asserted = self._read(assertion)
        if asserted.app != self._app:
            raise Unauthenticated(f"the app {asserted.app} is no sibling")
        return asserted.identity or own_account(self._app)

    def _asserted(self, assertion: str) -> Identity:
        asserted = self._read(assertion)
        if asserted.app not in self._apps:
            raise Unauthenticated(f"the app {asserted.app} is not in auth.apps")
        if asserted.identity is not None:
            return asserted.identity
        return own_account(asserted.app, self._apps[asserted.app])

    def _read(self, assertion: str) -> Assertion:
        try:
            return read_assertion(assertion, to=self._app, key=self._key, now=self._now())
        except (ValueError, RecursionError) as error:
            raise Unauthenticated(str(error)) from None

    def _by_certificate(self, properties: AuthContext) -> Identity:
        names = [name for name in _names_in(properties) if name in self._certificates]
        if not names:
            return ANONYMOUS
        roles = frozenset(role for name in names for role in self._certificates[name])
        return Identity(names[0], roles, "mtls")


def take_assertion(call: Call) -> str | None:
    """Take the assertion out of the metadata of a call, so that no handler sees it or passes it on.

    Raises:
        Unauthenticated: there are several.
    """
    if not any(name == ASSERTION for name, _ in call.metadata):
        return None
    metadata = call.metadata
    call.metadata = tuple(pair for pair in metadata if pair[0] != ASSERTION)
    return _only(ASSERTION, metadata)


def _only(name: str, metadata: Metadata) -> str | None:
    """The only value of `name`; None where there is none."""
    values = [value for key, value in metadata if key == name]
    if len(values) > 1:
        raise Unauthenticated(f"several values of the metadata {name}")
    return str(values[0]) if values else None


def _token_in(header: str) -> str:
    if len(header) > MAX_TOKEN:
        raise Unauthenticated(f"a token of {len(header)} characters, expected {MAX_TOKEN} at most")
    match = _BEARER.fullmatch(header)
    if match is None:
        raise Unauthenticated("the metadata authorization has no bearer token of three parts")
    return match[1]


def _names_in(properties: AuthContext) -> Iterator[str]:
    """The names in a certificate, as `[apps.NAME.auth.mtls]` writes them."""
    for name, prefix in _CERTIFICATE_PROPERTIES:
        for value in properties.get(name, ()):
            try:
                yield prefix + value.decode()
            except UnicodeDecodeError:
                continue
