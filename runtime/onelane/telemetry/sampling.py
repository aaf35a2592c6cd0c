"""OpenTelemetry's standard samplers, and one that samples a number of traces per second, without an SDK.

Source: OpenTelemetry's `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from onelane.core.trace_context import TraceContext


@dataclass(frozen=True, slots=True)
class Sampler:
    """Decides which traces are sampled: by their parent, by a ratio, or up to a rate."""

    parent_based: bool
    ratio: float
    """0.0 to 1.0, of the traces whose parent does not decide."""
    traces_per_s: float = 0.0
    """Root spans per second and shard that are recorded in addition to `ratio`."""

    threshold: int = field(init=False, default=0)
    """A trace is sampled if the low 64 bits of its id are below it: ratio · 2^64."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "threshold", round(self.ratio * 2**64))

    @property
    def is_idle(self) -> bool:
        """It samples nothing, not even the child of a sampled parent."""
        return not (self.parent_based or self.threshold or self.traces_per_s)

    def samples(self, trace_id: str, parent: TraceContext | None) -> bool:
        if self.parent_based and parent is not None:
            return parent.sampled
        # As OpenTelemetry's TraceIdRatioBased.
        return int(trace_id[16:], 16) < self.threshold


NEVER = Sampler(parent_based=False, ratio=0.0)


DEFAULT_TRACES_PER_S = 10.0
"""Traces per second and shard that are recorded for the admin page where no exporter and no sampler is configured."""


DEFAULT_SAMPLER = "parentbased_always_on"


RATE_LIMITED = "onelane_some"
"""A sampler of our own: `DEFAULT_TRACES_PER_S`. Used where no exporter and no sampler is configured."""


RATIO_SAMPLERS = ("always_on", "always_off", "traceidratio")
"""OpenTelemetry's, each also with the prefix `parentbased_`."""


def fault_of(environment: Mapping[str, str]) -> str:
    """Why `sampler_of` falls back to a default; "" where it does not."""
    name, argument = environment.get("OTEL_TRACES_SAMPLER", ""), environment.get("OTEL_TRACES_SAMPLER_ARG", "")
    known = [RATE_LIMITED, *RATIO_SAMPLERS, *(f"parentbased_{sampler}" for sampler in RATIO_SAMPLERS)]
    if name and name not in known:
        return f"OTEL_TRACES_SAMPLER is {name!r}, expected one of {', '.join(known)}; {DEFAULT_SAMPLER} is used"
    if name.endswith("traceidratio") and argument and not _is_ratio(argument):
        return f"OTEL_TRACES_SAMPLER_ARG is {argument!r}, expected a number from 0 to 1"
    return ""


def _is_ratio(text: str) -> bool:
    try:
        return 0.0 <= float(text) <= 1.0
    except ValueError:
        return False


def named_sampler(name: str, argument: str) -> Sampler:
    """As `sampler_of` of the two variables; "" for one that is not set."""
    variables = {"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": argument}
    return sampler_of({variable: value for variable, value in variables.items() if value})


def sampler_of(environment: Mapping[str, str]) -> Sampler:
    """The sampler that `OTEL_TRACES_SAMPLER` names; unknown names and bad ratios fall back to the default, as
    OpenTelemetry requires."""
    name = environment.get("OTEL_TRACES_SAMPLER") or DEFAULT_SAMPLER
    if name == RATE_LIMITED:
        return Sampler(parent_based=True, ratio=0.0, traces_per_s=DEFAULT_TRACES_PER_S)
    try:
        ratio = min(1.0, max(0.0, float(environment.get("OTEL_TRACES_SAMPLER_ARG", "1.0"))))
    except ValueError:
        ratio = 1.0
    ratios = {"always_on": 1.0, "always_off": 0.0, "traceidratio": ratio}
    if name.removeprefix("parentbased_") not in ratios:
        name = DEFAULT_SAMPLER
    return Sampler(name.startswith("parentbased_"), ratios[name.removeprefix("parentbased_")])
