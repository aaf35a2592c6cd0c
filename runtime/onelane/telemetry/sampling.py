"""The standard samplers, without an SDK.

Source: OpenTelemetry's `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from onelane.core.trace_context import TraceContext


@dataclass(frozen=True, slots=True)
class Sampler:
    """Decides which traces are recorded: parent-based or not, always, never, by a ratio, or so many in a second."""

    parent_based: bool
    ratio: float
    """0.0 to 1.0, for traces whose parent does not decide."""
    per_s: float = 0.0
    """Traces that begin in one shard and are recorded beside those, in a second."""

    bound: int = field(init=False, default=0)
    """Traces are sampled whose low 64 bits are below it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "bound", round(self.ratio * 2**64))

    @property
    def is_idle(self) -> bool:
        """It samples nothing, whatever a parent says."""
        return not (self.parent_based or self.bound or self.per_s)

    def decides(self, trace_id: str, parent: TraceContext | None) -> bool:
        if self.parent_based and parent is not None:
            return parent.sampled
        # OpenTelemetry's TraceIdRatioBased: the low 64 bits against ratio · 2^64.
        return int(trace_id[16:], 16) < self.bound


NEVER = Sampler(parent_based=False, ratio=0.0)


SOME_PER_S = 10.0
"""Traces in a second of one shard that are recorded for the admin page, where no exporter and no sampler is named."""


USUAL = "parentbased_always_on"


SOME = "onelane_some"
"""Not one of OpenTelemetry's: what is sampled where nobody has said."""


def sampler_of(environment: Mapping[str, str]) -> Sampler:
    """The sampler that `OTEL_TRACES_SAMPLER` names; unknown names and bad ratios fall back to the default, as
    OpenTelemetry asks."""
    name = environment.get("OTEL_TRACES_SAMPLER", USUAL)
    if name == SOME:
        return Sampler(parent_based=True, ratio=0.0, per_s=SOME_PER_S)
    try:
        ratio = min(1.0, max(0.0, float(environment.get("OTEL_TRACES_SAMPLER_ARG", "1.0"))))
    except ValueError:
        ratio = 1.0
    ratios = {"always_on": 1.0, "always_off": 0.0, "traceidratio": ratio}
    if name.removeprefix("parentbased_") not in ratios:
        name = USUAL
    return Sampler(name.startswith("parentbased_"), ratios[name.removeprefix("parentbased_")])
