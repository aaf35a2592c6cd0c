"""What the call in progress hands on to the calls it makes: the rest of its deadline, and its trace.

A context variable, so handlers need pass nothing along. Set once per call, in the call's own task.
"""

from contextvars import ContextVar
from typing import NamedTuple

from onelane.spans import TraceContext


class Scope(NamedTuple):
    """One call in progress."""

    method: str
    deadline_at: float | None
    """On the monotonic clock; None where the caller set none."""
    trace: TraceContext | None


current: ContextVar[Scope | None] = ContextVar("onelane.scope", default=None)


def sooner(a: float | None, b: float | None) -> float | None:
    """The sooner of two moments or durations, where None means never."""
    if a is None or b is None:
        return b if a is None else a
    return min(a, b)
