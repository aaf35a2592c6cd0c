"""The ids of calls that run once, each in the metadata `idempotency-key`; and how calls that are made inside the turn
of such a call get theirs.

Promises: a turn that is repeated, because its process died before it was on disk, gives its calls the same ids again.
Pure.
"""

import json
from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b

IDEMPOTENCY_KEY = "idempotency-key"
_DIGEST_BYTES = 16


def has_id(metadata: Iterable[tuple[str, object]]) -> bool:
    return any(name == IDEMPOTENCY_KEY for name, _ in metadata)


class NestedIds:
    """The ids of the calls that one call makes."""

    __slots__ = ("_calls", "_outer")

    def __init__(self, *outer: str) -> None:
        """outer: by which that call is told from all others: app, method, key, client, id."""
        self._outer = outer
        self._calls: Counter[tuple[str, str]] = Counter()

    def next(self, peer: str, method: str) -> str:
        """The id of the next call to a method, `pkg.Service/Method`, of a peer.

        Its ordinal counts the calls to that method of that peer alone, so calls of other methods may come in any order.
        """
        self._calls[peer, method] += 1
        parts = [*self._outer, peer, method, self._calls[peer, method]]
        return blake2b(json.dumps(parts).encode(), digest_size=_DIGEST_BYTES).hexdigest()
