"""What the admin page and `onelane top` show: one plain value, made of what the supervisor knows."""

import socket
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from onelane.core.placement import Placement
from onelane.supervisor.app import Keeper, ShardState
from onelane.telemetry.collector.collector import GAPS, LOST, Gathering, hottest
from onelane.telemetry.collector.history import Method, Step
from onelane.telemetry.histogram import Buckets
from onelane.telemetry.stats import DROPPED, Attributes

NOW = 10
"""Seconds that "now" looks back."""
TRACES = 60
"""Traces that are listed."""
SLICES = 360
"""Parts that the picture of a ring is cut into."""
HOTTEST = 10


class View:
    """Makes snapshots. Owned by the supervisor's admin side; what takes long to make is kept."""

    def __init__(self, apps: list[Keeper], gathering: Gathering) -> None:
        self._apps = apps
        self._gathering = gathering
        self._rings: dict[str, tuple[Placement, dict[str, Any]]] = {}

    def snapshot(self, *, steps: int) -> dict[str, Any]:
        """All there is to see now. steps: seconds of every method's history, 1 to `history.KEPT`."""
        sums = _Sums(self._gathering)
        return {
            "host": socket.gethostname(),
            "apps": [self._app(app, sums, steps) for app in self._apps],
            "traces": self._gathering.recent.summaries()[:TRACES],
            "losses": sums.losses(),
        }

    def _app(self, app: Keeper, sums: "_Sums", steps: int) -> dict[str, Any]:
        history = self._gathering.history.methods
        methods = {name: method for (of, name), method in history.items() if of == app.name}
        return {
            "name": app.name,
            "listen": app.settings.listen,
            "epoch": app.placement.epoch,
            "show_keys": app.settings.show_keys,
            "shards": [_shard(app, shard, sums) for shard in app.shards],
            "methods": [_method(name, method, steps) for name, method in sorted(methods.items()) if _is_told(name)],
            "ring": self._ring(app.name, app.placement),
            "hot_keys": hottest(self._gathering.hot_keys.get(app.name, {}), HOTTEST),
            "helpers": sums.helpers(app.name),
        }

    def _ring(self, name: str, placement: Placement) -> dict[str, Any]:
        """Its picture; made once for each placement."""
        found = self._rings.get(name)
        if found is None or found[0] is not placement:
            found = self._rings[name] = (placement, ring(placement))
        return found[1]


def _is_told(method: str) -> bool:
    """Health checks and our own methods would crowd the others out."""
    return not method.startswith(("grpc.", "onelane."))


class _Sums:
    """All series of one moment, by name, app and shard, read in one pass."""

    def __init__(self, gathering: Gathering) -> None:
        self._by_shard: dict[tuple[str, str, str], float] = defaultdict(float)
        self._helpers: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._losses: dict[str, float] = defaultdict(float)
        for point in gathering.totals.points():
            self._take(point.instrument.name, dict(point.attributes), point.value)

    def of(self, name: str, source: Attributes) -> float:
        app, shard = (value for _, value in source)
        return self._by_shard[name, app, shard]

    def helpers(self, app: str) -> list[dict[str, Any]]:
        """Every helper thread's queue."""
        found = sorted((key, row) for key, row in self._helpers.items() if key[0] == app)
        return [{"shard": shard, "name": name, **row} for (_, shard, name), row in found]

    def losses(self) -> list[dict[str, Any]]:
        """What telemetry itself has lost."""
        return [{"what": what, "count": count} for what, count in sorted(self._losses.items())]

    def _take(self, name: str, there: Mapping[str, str], value: float | Buckets) -> None:
        app, shard = there.get("onelane.app", ""), there.get("onelane.shard", "")
        if (helper := there.get("onelane.offload")) is not None:
            self._take_helper(app, shard, helper, name, value)
        elif isinstance(value, Buckets):
            return
        elif name in (DROPPED.name, LOST.name, GAPS.name):
            words = [there.get("onelane.signal", ""), name.removeprefix("onelane."), there.get("onelane.reason", "")]
            self._losses[" ".join(word for word in words if word)] += value
        elif name != "onelane.connections" or there.get("onelane.connection.steered") == "true":
            self._by_shard[name, app, shard] += value

    def _take_helper(self, app: str, shard: str, helper: str, name: str, value: float | Buckets) -> None:
        row = self._helpers.setdefault((app, shard, helper), {"depth": 0, "wait_p95": 0.0, "run_p95": 0.0})
        if isinstance(value, Buckets):
            what = {"onelane.offload.wait": "wait_p95", "onelane.offload.duration": "run_p95"}.get(name)
            if what:
                row[what] = value.quantile(0.95)
        elif name == "onelane.queue.depth":
            row["depth"] = int(value)


def _shard(app: Keeper, shard: ShardState, sums: _Sums) -> dict[str, Any]:
    source = app.source(shard)
    return {
        "name": shard.member.name,
        "index": shard.index,
        "pid": shard.pid,
        "address": shard.member.address,
        "state": shard.state,
        "restarts": shard.restarts,
        "calls": int(sums.of("onelane.calls", source)),
        "forwarded": int(sums.of("onelane.forwards", source)),
        "steered": int(sums.of("onelane.connections", source)),
        "stalls": int(sums.of("onelane.stalls", source)),
        "in_flight": int(sums.of("onelane.calls.in_flight", source)),
        "lag_s": sums.of("onelane.lane.lag", source),
        "load": sums.of("onelane.lane.utilization", source),
        "keyed": shard.keyed,
        "last_stalls": [asdict(stall) for stall in shard.stalls],
    }


def _method(name: str, method: Method, steps: int) -> dict[str, Any]:
    latest = list(method.steps)[-NOW:]
    seconds = max(1, len(latest))
    return {
        "name": name,
        "now": {
            "calls": sum(step.calls for step in latest) / seconds,
            "errors": sum(step.errors for step in latest) / seconds,
            **_quantiles(method.over(NOW)),
        },
        "steps": [_step(step) for step in list(method.steps)[-steps:]],
    }


def _step(step: Step) -> dict[str, Any]:
    return {"at": step.at_s, "calls": step.calls, "errors": step.errors, **_quantiles(step.spread)}


def _quantiles(spread: Buckets) -> dict[str, float]:
    return {"p50": spread.quantile(0.5), "p95": spread.quantile(0.95), "p99": spread.quantile(0.99)}


def ring(placement: Placement) -> dict[str, Any]:
    """Who owns how much of it, and a picture: the owner at each of `SLICES` places, by its index."""
    indices = {member.address: index for index, member in enumerate(placement.members)}
    owned = placement.ring.shares()
    shares = [owned[member.address] for member in placement.members]
    slices = [indices[placement.ring.owner_at((at * 2 + 1) / (2 * SLICES))] for at in range(SLICES)]
    return {"points": placement.points, "shares": shares, "skew": max(shares) * len(shares), "slices": slices}
