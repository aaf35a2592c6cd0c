"""A lane as its listener sees it."""

from collections.abc import Coroutine, Sequence
from typing import Any

from onelane.lane.gate import Gate
from onelane.lane.lane import Lane
from onelane.server.call import Call, Metadata
from onelane.server.connection_counts import ConnectionCounts
from onelane.server.listener import Work
from onelane.server.methods import Method
from onelane.telemetry.stats import Stats


class LaneServing:
    """See `onelane.server.listener.Serving`."""

    def __init__(self, lane: Lane, stats: Stats, gate: Gate | None = None) -> None:
        """gate: every call passes it first; None where the app has no `auth`."""
        self._lane = lane
        self._connection_counts = ConnectionCounts(stats)
        self._entries = lane.entries
        self._way_in = gate or lane
        if gate is not None:
            self.announce = gate.announce  # type: ignore[method-assign]
        # Bound once: it runs for every call.
        self.arrive = self._way_in.arrive  # type: ignore[method-assign]
        connections = stats.counter(
            "onelane.connections", unit="{connection}", description="Connections that came to this shard from a sibling"
        )
        self._steered = connections.at({"onelane.connection.steered": "true"})
        self._truncations = stats.counter(
            "onelane.truncations", unit="{call}", description="Calls whose details or trailers were too large, and cut"
        )

    def methods(self) -> Sequence[Method]:
        return [entry.method for entry in self._entries.values()]

    def announce(self, method: Method, call: Call) -> None:
        """Nothing, without a gate: every call may be made."""

    def serve(self, method: Method, call: Call, request: bytes | None) -> Coroutine[Any, Any, bytes]:
        return self._way_in.serve(method, call, request)

    def arrive(self, method: Method, call: Call, request: bytes | None) -> Work:
        return self._way_in.arrive(method, call, request)

    def refuses(self, method: Method, call: Call) -> bool:
        return self._lane.refuses(method, call)

    def resume(self, call: Call) -> Work:
        return self._lane.resume(call)

    def withdraw(self, call: Call, *, late: bool) -> None:
        self._lane.withdraw(call, late=late)

    def home_of(self, method: Method, metadata: Metadata, message: bytes | None) -> str | None:
        return self._lane.home_of(method, metadata, message)

    def connection_counts(self) -> ConnectionCounts:
        return self._connection_counts

    def steered(self) -> None:
        self._steered.add()

    def untaken(self, change: int, *, trusted: bool) -> None:
        self._lane.untaken(change, trusted=trusted)

    def ended_early(self, method: str, reason: str, *, peer: str) -> None:
        self._lane.refusals.add_ended(method, reason, peer=peer)

    def truncated(self, reason: str) -> None:
        self._truncations.add(1, {"onelane.reason": reason})
