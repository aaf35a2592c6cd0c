"""What the call in progress hands on to the calls it makes: the rest of its deadline, its trace, and its chain.

A context variable, so handlers need pass nothing along. Set once per call, in the call's own task.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from onelane.core.trace_context import TraceContext
from onelane.core.turns import Turn


class Scope(Protocol):
    """One call in progress, or what else runs on a lane. `onelane.server.call.Call` is one."""

    @property
    def method(self) -> str:
        """`/pkg.Service/Method`."""

    @property
    def deadline_at(self) -> float | None:
        """On the monotonic clock; None where the caller set none."""

    @property
    def trace(self) -> TraceContext | None:
        """What calls made here carry of their trace."""

    @property
    def span(self) -> Any:
        """Its span: a `telemetry.spans.SpanRecord` while that is sampled, else a `TraceContext` or None."""

    @property
    def baggage(self) -> str:
        """The W3C baggage that it came with; "" for none."""

    @property
    def onward(self) -> str:
        """The chain that calls made here carry: the turns that they are inside of; see `onelane.core.turns`."""


@dataclass(frozen=True, slots=True)
class Work:
    """What runs on a lane and is no call: a timer, a task."""

    method: str
    deadline_at: float | None = None
    trace: TraceContext | None = None
    onward: str = ""
    baggage: str = ""

    @property
    def span(self) -> TraceContext | None:
        return self.trace


@dataclass(frozen=True, slots=True)
class InTurn:
    """A scope inside a turn that was taken by hand."""

    outer: Scope | None
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
    def onward(self) -> str:
        return self.turn.onward(self.outer.onward if self.outer else "")


current: ContextVar[Scope | None] = ContextVar("onelane.scope", default=None)


@dataclass(frozen=True, slots=True)
class Attached:
    """What OpenTelemetry's API has attached inside a call; see `onelane.telemetry.otel.tracing`."""

    context: Any
    trace: TraceContext | None
    baggage: str


attached: ContextVar[Attached | None] = ContextVar("onelane.attached", default=None)


@dataclass(frozen=True, slots=True)
class Home:
    """The shard whose code runs here."""

    shard: str
    tracer: Any
    """`onelane.telemetry.tracer.Tracer`."""
    bridge: Any
    """`onelane.telemetry.otel.metrics.Bridge`."""


_home: ContextVar[Home | None] = ContextVar("onelane.home", default=None)
_of_process: Home | None = None


def settle(home: Home, *, alone: bool) -> None:
    """What runs in this context from now on is of `home`. alone: so are all threads of this process."""
    global _of_process
    _home.set(home)
    if alone:
        _of_process = home


def home_now() -> Home | None:
    """The shard that this is run by; None outside of any."""
    return _home.get() or _of_process


def shard_now() -> str:
    """Its name; "" outside of any."""
    found = home_now()
    return found.shard if found is not None else ""


def trace_now() -> TraceContext | None:
    """The trace that whatever is begun now belongs to."""
    found, scope = attached.get(), current.get()
    if found is not None:
        return found.trace
    return scope.trace if scope is not None else None


def baggage_now() -> str:
    """The W3C baggage of whatever is begun now."""
    found, scope = attached.get(), current.get()
    if found is not None:
        return found.baggage
    return scope.baggage if scope is not None else ""


def sooner(a: float | None, b: float | None) -> float | None:
    """The sooner of two moments or durations, where None means never."""
    if a is None or b is None:
        return b if a is None else a
    return min(a, b)
