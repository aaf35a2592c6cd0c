"""The calls of all players, counted at the client."""

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import grpc.aio


@dataclass
class Tally:
    """See the module."""

    answered: Counter[str] = field(default_factory=Counter)
    """Method → calls answered OK."""
    errors: Counter[str] = field(default_factory=Counter)
    """Method and status → calls that failed."""
    details: dict[str, str] = field(default_factory=dict)
    """Of the first of each of these."""
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=5000))
    """Durations of the latest calls answered OK."""
    events: int = 0
    """Events that watchers of rooms have received."""
    reopened: Counter[str] = field(default_factory=Counter)
    """Why a watch ended and was opened again → how often."""

    async def call(self, method: str, call: Any) -> Any:
        """The response of `call`, counted.

        Raises:
            grpc.aio.AioRpcError: the call failed.
        """
        began = time.perf_counter()
        try:
            response = await call
        except grpc.aio.AioRpcError as error:
            kind = f"{method}: {error.code().name}"
            self.errors[kind] += 1
            self.details.setdefault(kind, error.details() or "")
            raise
        self.seconds.append(time.perf_counter() - began)
        self.answered[method] += 1
        return response

    def percentile_ms(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
