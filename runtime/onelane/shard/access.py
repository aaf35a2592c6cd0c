"""Access control of one shard, `[apps.NAME.auth]`: the gate before its lane, and what follows the keys of tokens.

Promises: an app without that table imports no library for it, and its calls pass no gate.
"""

from dataclasses import dataclass
from time import time

from onelane.config import App
from onelane.core.auth_settings import JwtSettings
from onelane.core.permissions import Permissions
from onelane.errors import BadConfig
from onelane.lane.audit import Audit
from onelane.lane.gate import Gate
from onelane.lane.lane import Lane
from onelane.server.authenticator import Authenticator, TokenKeysFollower, TokenVerifier
from onelane.v1 import control_pb2


@dataclass(frozen=True, slots=True)
class Access:
    """See the module."""

    gate: Gate | None = None
    token_keys: TokenKeysFollower | None = None


def build_access(setup: control_pb2.Setup, settings: App, lane: Lane) -> Access:
    """The access control of the shard that `setup` describes.

    Raises:
        BadConfig: a library is missing.
    """
    auth = settings.auth
    if auth is None:
        return Access()
    tokens, token_keys = _tokens(auth.jwt, setup.app) if auth.jwt is not None else (None, None)
    authenticator = Authenticator(auth, app=setup.app, key=setup.identity_key, tokens=tokens, now=time)
    return Access(Gate(lane, Permissions(auth.methods), authenticator, Audit(setup.name)), token_keys)


def _tokens(settings: JwtSettings, app: str) -> tuple[TokenVerifier, TokenKeysFollower]:
    try:
        # Imported here, because only apps that accept tokens need PyJWT and cryptography.
        from onelane.server.token_verifier import JwtVerifier
        from onelane.shard.key_source import KeySource
    except ModuleNotFoundError as error:
        raise BadConfig(f"apps.{app}.auth.jwt", [f"no module {error.name!r}; install onelane[auth]"]) from error
    verifier = JwtVerifier(settings)
    return verifier, KeySource(settings, verifier)
