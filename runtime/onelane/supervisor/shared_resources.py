"""What all apps of one supervisor share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onelane.supervisor.launcher import Launcher, RunningShard
from onelane.supervisor.leased_lives import LeasedLives
from onelane.supervisor.placing import PlacedApp, Placing
from onelane.telemetry.collector.collector import Collector
from onelane.telemetry.sampling import NEVER, Sampler, named_sampler


@dataclass(frozen=True, slots=True)
class TelemetryOptions:
    """The signals that shards record."""

    traces: bool = True
    sampler: str = ""
    """As `OTEL_TRACES_SAMPLER` names it; "" for the standard's default."""
    sampler_arg: str = ""
    logs: bool = False

    @property
    def span_sampler(self) -> Sampler:
        """The sampler of a shard."""
        return named_sampler(self.sampler, self.sampler_arg) if self.traces else NEVER


@dataclass(frozen=True, repr=False)
class SharedResources:
    """Resources that all apps of one supervisor share."""

    launcher: Launcher
    app_dir: str
    telemetry: TelemetryOptions
    collector: Collector
    peers: dict[str, str]
    """App name → host:port, for stubs."""
    answer_status: Callable[[RunningShard, int], object]
    """Schedules the answer to a shard that asked for the status of all shards; the number is its request's."""
    start_soon: Callable[..., object]
    """Starts a task of the supervisor: a coroutine function, and its arguments."""
    start_shard: Callable[..., object]
    """As `start_soon`, for the supervision of one more shard; the supervisor runs until all of these have ended."""
    accepting: Callable[[str], Sequence[str]] = lambda _: ()
    """See `Config.accepting`."""
    lives: LeasedLives | None = None
    """Where the machine is a part of a cluster."""
    place: Callable[[PlacedApp], Placing] | None = None
    """Says who decides on the placements of an app; by default its supervisor."""
    identity_key: bytes = b""
    """Of assertions of identity between the apps; without one, none is accepted. Never shown."""
