"""What a shard asserts of the clients for whom it calls other apps and its siblings.

Promises: an app is told of a client only where its `auth.apps` names the calling app; what is called for an anonymous
client is not called on the app's own account, unless the service asks for that.
"""

from collections.abc import Callable, Collection
from functools import partial
from time import time

from onelane.core.context import current_call
from onelane.core.identity import Identity, own_account, write_assertion


class Assertions:
    """See the module. Owned by one lane."""

    def __init__(self, app: str, accepted_by: Collection[str], key: bytes, now: Callable[[], float] = time) -> None:
        """app: the calling app's name. accepted_by: names of apps; its own where it has `auth`. key: of the MAC.
        now: seconds since the Unix epoch."""
        self.app = app
        self._accepted_by = frozenset(accepted_by)
        self._key = key
        self._now = now

    def writer(self, to: str, *, on_own_account: bool = False) -> Callable[[], str] | None:
        """Writes the assertion of a call that is made to the app `to` at that moment; None where it accepts none."""
        return partial(self._write, to, on_own_account) if to in self._accepted_by else None

    def identity_within_app(self) -> Identity | None:
        """The identity of a call that is made now in this very shard; None where the app asks for none."""
        if self.app not in self._accepted_by:
            return None
        return self._client() or own_account(self.app)

    def _write(self, to: str, on_own_account: bool) -> str:
        identity = None if on_own_account else self._client()
        return write_assertion(identity, app=self.app, to=to, key=self._key, now=self._now())

    def _client(self) -> Identity | None:
        """The client of the call in progress; None outside of any, and where the app works for itself."""
        call = current_call()
        identity = call.identity if call is not None else None
        return None if identity is not None and identity.subject == own_account(self.app).subject else identity
