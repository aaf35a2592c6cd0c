"""What a machine counts of its cluster: its lease, the machines by their state, placements and their changes, requests.

Of what all machines see alike (machines, epochs) each exports what it sees itself, so that a machine that is cut off
shows; a change is measured once, by the machine that coordinates at its end. A look is made each second.
"""

from collections import Counter
from collections.abc import Callable, Mapping

from onelane.cluster.overview import ClusterOverview, MachineState, states_of
from onelane.supervisor.machine import Machine
from onelane.telemetry.stats import Point, Stats


class ClusterMetrics:
    """See the module."""

    def __init__(self, requests: Callable[[], Mapping[str, int]]) -> None:
        """requests: sent to the store so far, by their operation."""
        self._stats = stats = Stats()
        self._left = stats.gauge(
            "onelane.machine.lease.left", unit="s", description="Until this machine serves no key, without a renewal"
        )
        self._coordinates = stats.gauge(
            "onelane.machine.coordinates", unit="1", description="1 where this machine coordinates the placements"
        )
        self._failed = stats.counter(
            "onelane.machine.renewals.failed", unit="{renewal}", description="Renewals of the lease that failed"
        )
        self._fenced = stats.counter(
            "onelane.machine.fenced",
            unit="s",
            description="Time in which this machine served no key for want of a lease",
        )
        self._machines = stats.gauge(
            "onelane.cluster.machines", unit="{machine}", description="Machines, as this one sees them"
        )
        self._epoch = stats.gauge(
            "onelane.cluster.epoch", unit="{epoch}", description="Epoch of the placement in force"
        )
        self._unserved = stats.gauge(
            "onelane.cluster.unserved", unit="{shard}", description="Owners of keys that run on no machine"
        )
        self._age = stats.gauge(
            "onelane.cluster.change.age", unit="s", description="Time since the change under way began; 0 without one"
        )
        self._duration = stats.histogram(
            "onelane.cluster.change.duration", unit="s", description="Duration of a change of placement"
        )
        self._requests = stats.counter("onelane.cluster.requests", unit="{request}", description="Requests to etcd")
        self._sent = requests
        self._counted = Counter[str]()
        """Of the requests."""
        self._failures_counted = 0
        self._fenced_counted_s = 0.0

    def changes_over(self, durations_s: Mapping[str, float]) -> None:
        """Changes have ended. durations_s: by app."""
        for app, duration_s in durations_s.items():
            self._duration.record(duration_s, {"onelane.app": app})

    def take(self, overview: ClusterOverview, machine: Machine, now: float) -> list[Point]:
        """What has changed since the last look. machine: this one."""
        lease, failures, fenced_s = machine.lease, machine.renewals_failed, machine.fenced_s
        self._left.set(0.0 if lease is None else max(0.0, lease.serve_until - now))
        self._coordinates.set(1 if overview.coordinator == machine.name else 0)
        self._failed.add(failures - self._failures_counted)
        # What the machine has added up: a fence that closes and opens between two looks counts as well.
        self._fenced.add(fenced_s - self._fenced_counted_s)
        self._failures_counted, self._fenced_counted_s = failures, fenced_s
        self._look_at_the_cluster(overview)
        self._count_requests()
        return self._stats.take()

    def _look_at_the_cluster(self, overview: ClusterOverview) -> None:
        states = states_of(overview)
        for state in MachineState:
            self._machines.set(states.get(state, 0), {"onelane.state": str(state)})
        for app in overview.apps:
            attributes = {"onelane.app": app.name}
            self._epoch.set(app.epoch, attributes)
            self._unserved.set(len(app.unserved), attributes)
            self._age.set(0.0 if app.change is None else app.change.since_s or 0.0, attributes)

    def _count_requests(self) -> None:
        sent = self._sent()
        for operation, count in sent.items():
            self._requests.add(count - self._counted[operation], {"onelane.operation": operation})
        self._counted = Counter(sent)
