"""How long a supervisor may take to start and to stop, by its file alone: what whoever runs it has to grant.

An orchestrator that is more impatient kills what would have ended by itself: terminationGracePeriodSeconds and the
failures of a startup probe in Kubernetes, TimeoutStopSec and TimeoutStartSec of systemd, stop_grace_period of compose.
"""

from onelane.config import Config
from onelane.supervisor.app import DRAIN_MARGIN_S, SHARD_END_S, START_PARTS
from onelane.supervisor.placing import CHANGE_MARGIN_S
from onelane.supervisor.supervisor import SINK_CLOSE_S


def longest_start_s(config: Config) -> float:
    """Seconds until all apps are ready, or one of them has failed. They start one after another. Left out: the loading
    of stored state, which takes as long as there is state."""
    return sum(START_PARTS * app.start_s for app in config.apps.values())


def longest_leave_s(config: Config) -> float:
    """Seconds until `onelane leave` has given up what has not moved. The keys of all apps move at once."""
    return max(app.drain_s for app in config.apps.values()) + CHANGE_MARGIN_S


def longest_stop_s(config: Config, sinks: int = 0, *, in_cluster: bool = False) -> float:
    """Seconds from SIGTERM until all processes have ended. Apps drain one after another, the shards of each at once.

    sinks: exporters beside Prometheus, each of which sends its queue at the end. in_cluster: keys move away before each
    drain.
    """
    apps = config.apps.values()
    return (
        (_moves_s(config) if in_cluster else 0.0)
        + sum(app.drain_s + DRAIN_MARGIN_S + SHARD_END_S + app.stop_s for app in apps)
        + SINK_CLOSE_S * (1 + sinks)
    )


def _moves_s(config: Config) -> float:
    # Only with a cluster.
    from onelane.supervisor.joining import LEAVE_S

    return sum(app.drain_s + CHANGE_MARGIN_S for app in config.apps.values()) + LEAVE_S
