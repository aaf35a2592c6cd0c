"""What is counted of a shard's connections: those that are open, and why others were refused, cut off or sent away.

Of refusals one a second of each reason is logged.
"""

import logging
from collections.abc import Callable
from time import monotonic

from onelane.telemetry.stats import Stats

log = logging.getLogger("onelane.listener")
REFUSAL_EVERY_S = 1.0


class ConnectionCounts:
    """See the module. Owned by one lane."""

    def __init__(self, stats: Stats, *, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._refused = stats.counter(
            "onelane.connections.refused",
            unit="{connection}",
            description="Connections of clients that were closed at once, or cut off because they were slow or silent",
        )
        self._goaways = stats.counter(
            "onelane.connections.goaways", unit="{connection}", description="Connections that were sent a GOAWAY"
        )
        self._handshakes = stats.counter(
            "onelane.tls.handshakes", unit="{handshake}", description="TLS handshakes that have ended or failed"
        )
        self._logged_at: dict[str, float] = {}
        """Event and reason → when a refusal was logged last."""
        self._unlogged: dict[str, int] = {}
        """Event and reason → how many since then."""
        self._open = stats.gauge(
            "onelane.connections.open", unit="{connection}", description="Open connections of clients"
        )

    def observe_open(self, count: Callable[[], int]) -> None:
        """count: the number of open connections, asked for at each tick."""
        self._open.observe(count)

    def goaway(self, reason: str) -> None:
        """A client was asked to leave. reason: the value of `onelane.reason`, one of a few."""
        self._goaways.add(1, {"onelane.reason": reason})

    def refused(self, reason: str, peer: str) -> None:
        """A connection was closed. reason: the value of `onelane.reason`, one of a few."""
        self._refused.add(1, {"onelane.reason": reason})
        self._log("connection.refused", reason, peer)

    def handshake_done(self) -> None:
        self._handshakes.add(1)

    def handshake_failed(self, error: str, peer: str) -> None:
        """error: the value of `error.type`, one of a few."""
        self._handshakes.add(1, {"error.type": error})
        self._log("tls.handshake_failed", error, peer)

    def _log(self, event: str, reason: str, peer: str) -> None:
        now, name = self._now(), f"{event} reason={reason}"
        if now - self._logged_at.get(name, now - REFUSAL_EVERY_S) < REFUSAL_EVERY_S:
            self._unlogged[name] = self._unlogged.get(name, 0) + 1
            return
        self._logged_at[name] = now
        log.warning("%s peer=%s more=%d", name, peer, self._unlogged.pop(name, 0))
