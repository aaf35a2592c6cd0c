"""The context of the call in progress: the deadline, trace, baggage and chain that the calls it makes carry on.

A context variable, so handlers need pass nothing along. Set once per call, in the call's own task. Beside it stands
the shard for which code runs, for what is logged, traced and counted.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from onelane.core.identity import Identity
from onelane.core.trace_context import TraceContext
from onelane.core.turns import Turn


class CallContext(Protocol):
    """The context of one call in progress, or of other work on a lane. `onelane.server.call.Call` is one."""

    @property
    def method(self) -> str:
        """`/pkg.Service/Method`."""

    @property
    def deadline_at(self) -> float | None:
        """On the monotonic clock; None where the caller set none."""

    @property
    def trace(self) -> TraceContext | None:
        """The trace that calls made here belong to."""

    @property
    def span(self) -> Any:
        """Its span: a `telemetry.spans.SpanRecord` while that is recorded, else a `TraceContext` or None."""

    @property
    def baggage(self) -> str:
        """The W3C baggage that its caller sent; "" for none."""

    @property
    def identity(self) -> Identity | None:
        """Who its client is; None where that was not asked, or where there is no client."""

    @property
    def outgoing_chain(self) -> str:
        """The chain that calls made here carry: the turns that they are inside of; see `onelane.core.turns`."""


@dataclass(frozen=True, slots=True)
class TaskContext:
    """The context of work on a lane that is no call: a timer, an offloaded job, a task."""

    method: str
    deadline_at: float | None = None
    trace: TraceContext | None = None
    outgoing_chain: str = ""
    baggage: str = ""

    @property
    def span(self) -> TraceContext | None:
        return self.trace

    @property
    def identity(self) -> None:
        """It is the app's own work."""


@dataclass(frozen=True, slots=True)
class TurnContext:
    """The context inside a turn that was taken by hand (`Shard.turn`): that around it, and one more turn."""

    outer: CallContext | None
    turn: Turn

    @property
    def method(self) -> str:
        return self.outer.method if self.outer else f"/{self.turn.method}"

    @property
    def deadline_at(self) -> float | None:
        return self.outer.deadline_at if self.outer else None

    @property
    def trace(self) -> TraceContext | None:
        return self.outer.trace if self.outer else None

    @property
    def span(self) -> Any:
        return self.outer.span if self.outer else None

    @property
    def baggage(self) -> str:
        return self.outer.baggage if self.outer else ""

    @property
    def identity(self) -> Identity | None:
        return self.outer.identity if self.outer else None

    @property
    def outgoing_chain(self) -> str:
        return self.turn.outgoing_chain(self.outer.outgoing_chain if self.outer else "")


current_call_var: ContextVar[CallContext | None] = ContextVar("onelane.call", default=None)
current_call = current_call_var.get
"""The context of the call in progress; None outside of any. The variable's own method: reading it costs no more."""


@dataclass(frozen=True, slots=True)
class AttachedContext:
    """A context that OpenTelemetry's API has attached inside a call; see `onelane.telemetry.otel.tracing`."""

    context: Any
    trace: TraceContext | None
    baggage: str


attached_context_var: ContextVar[AttachedContext | None] = ContextVar("onelane.attached_context", default=None)
attached_context = attached_context_var.get
"""The context that OpenTelemetry's API has attached last; None where it has attached none."""


def current_trace() -> TraceContext | None:
    """The trace of a span or call that is begun now."""
    attached = attached_context()
    if attached is not None:
        return attached.trace
    call = current_call()
    return call.trace if call is not None else None


def current_baggage() -> str:
    """The W3C baggage of a call that is begun now."""
    attached = attached_context()
    if attached is not None:
        return attached.baggage
    call = current_call()
    return call.baggage if call is not None else ""


@dataclass(frozen=True, slots=True)
class ShardBinding:
    """The shard for which code runs."""

    name: str
    tracer: Any
    """`onelane.telemetry.tracer.Tracer`."""
    bridge: Any
    """`onelane.telemetry.otel.metrics.Bridge`."""


_bound_shard_var: ContextVar[ShardBinding | None] = ContextVar("onelane.shard", default=None)
_shard_of_process: ShardBinding | None = None


def bind_shard(binding: ShardBinding, *, whole_process: bool) -> None:
    """From now on this context runs for a shard; whole_process: and all other threads and contexts as well."""
    global _shard_of_process
    _bound_shard_var.set(binding)
    if whole_process:
        _shard_of_process = binding


def bound_shard() -> ShardBinding | None:
    """The shard for which this code runs; None outside of any."""
    return _bound_shard_var.get() or _shard_of_process


def bound_shard_name() -> str:
    """The name of the shard for which this code runs; "" outside of any."""
    binding = bound_shard()
    return binding.name if binding is not None else ""


def seconds_of(timeout: Any) -> float:
    """A timeout of any class of numbers, such as NumPy's, which compiled code does not take for a float.

    Raises:
        TypeError: it is no number.
    """
    # Not `float` alone, which reads text as well.
    return float(timeout + 0.0)


def earlier(a: float | None, b: float | None) -> float | None:
    """The earlier of two moments, or the shorter of two durations, where None means never."""
    if a is None or b is None:
        return b if a is None else a
    return min(a, b)
