"""One app as its callers know it: its name, its service config, its retry budget, its calls under way, its counts."""

from collections.abc import Awaitable, Callable, Mapping
from random import Random

from onelane.client.retry import RetryBudget
from onelane.core import addresses
from onelane.core.service_config import ServiceConfig
from onelane.telemetry.stats import Stats
from onelane.telemetry.tracer import Tracer

DEFAULT_SERVICE_CONFIG = ServiceConfig()
CLIENT_DURATION = "rpc.client.call.duration"
BeforeSending = Callable[[], Callable[[], Awaitable[None]] | None]
"""Returns what a call that is made now must wait for; None where it need not wait."""
NestedId = Callable[[str, str], str | None]
"""(peer, `pkg.Service/Method`) → the id of a call that is made now, inside a call that has one; None outside of any."""
DECISIONS = {
    "retries": "Attempts after one that failed",
    "hedges": "Attempts beside one that was late",
    "reopenings": "Server streams opened again, because their key had moved",
    "ejections": "Endpoints left alone for a while, because they failed on and on",
    "refusals": "Calls not sent, because too many were under way",
}


class Peer:
    """State that all methods of one channel share. Owned by that channel."""

    def __init__(
        self,
        name: str,
        target: str,
        *,
        deadline_s: float | None,
        service_config: ServiceConfig = DEFAULT_SERVICE_CONFIG,
        tracer: Tracer | None = None,
        stats: Stats | None = None,
    ) -> None:
        """name: for errors and counts. deadline_s: of calls that have no other; None for none."""
        self.name = name
        self.deadline_s = deadline_s
        self.service_config = service_config
        self.tracer = tracer
        self.budget = RetryBudget(service_config.retryThrottling)
        self.in_flight = 0
        """Attempts under way."""
        self.rng = Random()
        self.address_attributes = _address_attributes(target)
        """`server.address` and `server.port`, for spans and durations."""
        self.duration = (
            stats.histogram(CLIENT_DURATION, unit="s", description="Duration of calls to others") if stats else None
        )
        self.before_sending: BeforeSending | None = None
        """Where calls may have to wait until the state that they rest on is on disk."""
        self.nested_id: NestedId | None = None
        """Where calls may be made inside a call that runs once for its id."""
        self._stats = stats

    def count(self, decision: str, reason: str) -> None:
        """Count a decision about a call: retries, hedges, reopenings, ejections, refusals."""
        if self._stats is not None:
            counter = self._stats.counter(f"onelane.client.{decision}", unit="{call}", description=DECISIONS[decision])
            counter.add(1, {"onelane.peer": self.name, "onelane.reason": reason})


def _address_attributes(target: str) -> Mapping[str, str | int]:
    dialled = addresses.parse_target(target)
    if dialled.startswith("unix:"):
        return {"server.address": dialled.removeprefix("unix:")}
    host, port = addresses.split(dialled)
    return {"server.address": host, "server.port": port}
