"""A method of a stub whose calls say who they are made for: each carries an assertion of identity (`core/identity`)."""

from collections.abc import Callable
from typing import Any

import grpc

from onelane.client.ring_method import RingMethod
from onelane.core.identity import ASSERTION, AUTHORIZATION
from onelane.wire.framing import Headers, pairs_of

_ASSERTION = ASSERTION.encode()


class AssertingMethod(RingMethod):
    """A `RingMethod` of an app that accepts assertions of the calling app."""

    assert_identity: Callable[[], str]
    """Writes the assertion of a call that is made now."""

    def __call__(
        self,
        request: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        pairs = tuple(pair for pair in pairs_of(metadata) if pair[0] != ASSERTION) if metadata else ()
        if not any(name == AUTHORIZATION for name, _ in pairs):
            # With a token of its own, a call is made for whom that says.
            pairs = (*pairs, (ASSERTION, self.assert_identity()))
        return super().__call__(request, timeout, pairs, credentials, wait_for_ready, compression)

    def renewed(self, headers: Headers) -> Headers:
        # The old one may have expired.
        return [(n, self.assert_identity().encode() if n == _ASSERTION else value) for n, value in headers]
