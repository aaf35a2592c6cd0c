"""One method as a lane serves it, with its counters."""

from collections.abc import Callable

import grpc

from onelane.core.keys import ANY, FieldKey
from onelane.core.side_effects import has_no_side_effects
from onelane.server.call import OK
from onelane.server.methods import Method
from onelane.telemetry.stats import CounterSeries, HistogramSeries, Stats
from onelane.telemetry.tracer import ERROR, METHOD, SERVER_ERRORS, STATUS, SYSTEM


def is_ours(method: Method) -> bool:
    """Whether it is the runtime's own, or one that grpcio ships."""
    return method.path.startswith(("/grpc.", "/onelane."))


class Entry:
    """One method with its cells, so that counting a call is two additions."""

    __slots__ = (
        "_calls",
        "_cells",
        "_duration",
        "_stats",
        "any",
        "asks_message",
        "changes_state",
        "is_hidden",
        "is_ours",
        "is_simple",
        "is_watch",
        "may_be_endless",
        "method",
        "reads",
        "takes_ids",
        "takes_turns",
        "watches",
    )

    def __init__(self, method: Method, stats: Stats) -> None:
        self.method = method
        self.is_hidden = False
        """Its calls are left out of traces, counts and calls in flight; see `HiddenEntry`."""
        self.any = method.rule is ANY
        self.is_ours = is_ours(method)
        self.may_be_endless = self.any and method.response_streaming
        """A stream that nobody would end: a drain does."""
        self.is_watch = self.may_be_endless and self.is_ours
        """Of the topology, of health: its calls are bounded apart, and leave `max_in_flight` to the app's calls."""
        self.watches = 0
        """Calls in progress, where it is a watch."""
        self.reads = method.rule.read if isinstance(method.rule, FieldKey) else None
        """Reads the key of a message, where that is where the key is."""
        self.asks_message = isinstance(method.rule, FieldKey)
        """The key of a call is in its first message, unless its metadata say it."""
        streams = method.request_streaming or method.response_streaming
        self.takes_turns = not (streams or self.any or method.is_free)
        self.changes_state = not has_no_side_effects(method.path)
        """Its calls may change the state of their key."""
        self.takes_ids = self.takes_turns and self.changes_state
        """Its calls run once for each `idempotency-key`, where the app has durable state."""
        self.is_simple = method.is_async and not streams and method.choose is None
        self._stats = stats
        self._cells: dict[str, tuple[CounterSeries, HistogramSeries]] = {}
        self._calls, self._duration = self._make("OK")

    def count(self, code: grpc.StatusCode, seconds: float) -> HistogramSeries:
        """Count a call that has ended; the series that has its duration, for an exemplar."""
        if code is OK:
            # Apart, because looking a status code up by its hash costs as much as all the rest of this.
            self._calls.add()
            self._duration.record(seconds)
            return self._duration
        cells = self._cells.get(code.name)
        if cells is None:
            cells = self._cells[code.name] = self._make(code.name)
        cells[0].add()
        cells[1].record(seconds)
        return cells[1]

    def _make(self, code: str) -> tuple[CounterSeries, HistogramSeries]:
        attributes = {METHOD: self.method.name, STATUS: code}
        calls = self._stats.counter("onelane.calls", unit="{call}", description="Calls answered by this shard")
        duration = self._stats.histogram("rpc.server.call.duration", unit="s", description="Duration of calls")
        error = {ERROR: code} if code in SERVER_ERRORS else {}
        return calls.at(attributes), duration.at(attributes | {SYSTEM: "grpc"} | error)


class HiddenEntry(Entry):
    """A method of the runtime's own whose calls are not recorded: no report has its series."""

    __slots__ = ("_ended",)

    def __init__(self, method: Method, *, ended: Callable[[], None]) -> None:
        """ended: called at the end of each call."""
        super().__init__(method, Stats())
        self.is_hidden = True
        self._ended = ended

    def count(self, code: grpc.StatusCode, seconds: float) -> HistogramSeries:
        self._ended()
        return self._duration
