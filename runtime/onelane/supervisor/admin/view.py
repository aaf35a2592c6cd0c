"""Snapshots for the admin page and `onelane top`: one plain value with the state of every app, ready for JSON."""

import socket
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from onelane.client.peer import CLIENT_DURATION
from onelane.config import Config
from onelane.core import addresses
from onelane.core.placement import Placement
from onelane.supervisor.app import AppSupervisor
from onelane.supervisor.store_status import store_status
from onelane.supervisor.supervised_shard import SupervisedShard
from onelane.telemetry.collector.collector import ADMIN_REFUSALS, GAPS, LOST, Collector, hottest_keys
from onelane.telemetry.collector.history import MethodHistory, Step
from onelane.telemetry.collector.recent_traces import RUNTIME_SERVICES
from onelane.telemetry.histogram import Buckets
from onelane.telemetry.stats import DROPPED, Attributes

RECENT_S = 10
"""The present rates and quantiles are those of so many seconds."""
LISTED_TRACES = 60
MAX_HOT_KEYS = 10
REFUSED_THINGS = {
    "onelane.connections.refused": "connection",
    "onelane.tls.handshakes": "TLS handshake",
    ADMIN_REFUSALS.name: "admin",
}
"""Counters of refusals, and what the page calls the thing that was refused."""
RING_SLICES = 360
"""Equal parts of the ring that the page draws."""


class View:
    """Builds snapshots. Owned by the admin server's event loop."""

    def __init__(
        self,
        apps: list[AppSupervisor],
        collector: Collector,
        config: Config,
        cluster: Callable[[], dict[str, Any] | None],
    ) -> None:
        """cluster: its status; None without one."""
        self._cluster = cluster
        self._apps = apps
        self._config = config
        self._collector = collector
        self._rings: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {}
        """App → the addresses that its ring was last drawn of, and the drawing, which takes long to compute."""

    def snapshot(self, *, steps: int) -> dict[str, Any]:
        """The present state. steps: seconds of every method's history to include, 1 to `history.HISTORY_STEPS`."""
        sums, cluster = _Sums(self._collector), self._cluster()
        rows = {
            "host": socket.gethostname(),
            "console": self._config.has_console,
            "apps": [self._app(app, sums, steps) for app in self._apps],
            "calls": sums.calls(self._names_by_address()),
            "traces": self._collector.recent_traces.summaries()[:LISTED_TRACES],
            "losses": sums.losses(),
            "refusals": sums.refusals(),
        }
        return rows if cluster is None else rows | {"cluster": cluster}

    def _names_by_address(self) -> dict[str, str]:
        """Address by which stubs connect → the app, or the peer outside of the file, that listens there."""
        peers = {addresses.parse_target(target): name for name, target in self._config.peers.items()}
        return peers | {addresses.reachable(app.settings.listen): app.name for app in self._apps}

    def _app(self, app: AppSupervisor, sums: "_Sums", steps: int) -> dict[str, Any]:
        history = self._collector.history.methods
        methods = {name: method for (app_name, name), method in history.items() if app_name == app.name}
        return {
            "name": app.name,
            "listen": app.settings.listen,
            "epoch": app.placement.epoch,
            "show_keys": app.settings.show_keys,
            "reflection": app.settings.serves_reflection,
            "shards": [
                _shard(app, shard, sums)
                | {"durable": store_status(app.settings.state.store, app.source(shard), self._collector.totals)}
                for shard in app.shards
            ],
            "change": app.changes.status(),
            "methods": [_method(name, method, steps) for name, method in sorted(methods.items()) if _is_shown(name)],
            "ring": self._ring(app),
            "hot_keys": hottest_keys(self._collector.hot_keys(app.name), MAX_HOT_KEYS),
            "helpers": sums.helpers(app.name, {shard.member.name for shard in app.shards}),
        }

    def _ring(self, app: AppSupervisor) -> dict[str, Any]:
        """The drawing of an app's ring; computed once for each set of addresses."""
        drawn = tuple(shard.member.address for shard in app.shards)
        placed = tuple(member.address for member in app.placement.members)
        drawn_of, drawing = self._rings.get(app.name, ((), {}))
        if drawn_of != drawn + placed:
            drawing = ring(app.placement, drawn)
            self._rings[app.name] = (drawn + placed, drawing)
        return drawing


def _is_shown(method: str) -> bool:
    """Health checks, reflection and onelane's own methods would crowd out the services' methods."""
    return not method.startswith(RUNTIME_SERVICES)


class _Sums:
    """The sums of all series by name, app and shard, as of one moment. Reads the series once."""

    def __init__(self, collector: Collector) -> None:
        self._by_shard: dict[tuple[str, str, str], float] = defaultdict(float)
        self._helpers: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._losses: dict[str, float] = defaultdict(float)
        self._refusals: dict[tuple[str, str], float] = defaultdict(float)
        """What was refused, and why → how often."""
        self._client_calls: dict[tuple[str, str], tuple[int, int]] = {}
        """Calling app and the address of the called one → calls, and those of them that failed."""
        # With the shards that the apps have no more: a sum does not fall.
        for point in collector.totals.points(with_retired=True):
            self._add(point.instrument.name, dict(point.attributes), point.value)

    def of(self, name: str, source: Attributes) -> float:
        app, shard = (value for _, value in source)
        return self._by_shard[name, app, shard]

    def helpers(self, app: str, shards: Collection[str]) -> list[dict[str, Any]]:
        """Queue depth, wait and run time of every worker thread of these shards of an app."""
        rows = sorted((key, row) for key, row in self._helpers.items() if key[0] == app and key[1] in shards)
        return [{"shard": shard, "name": name, **row} for (_, shard, name), row in rows]

    def losses(self) -> list[dict[str, Any]]:
        """Spans, log records, points and reports that were lost on their way."""
        return [{"what": loss, "count": count} for loss, count in sorted(self._losses.items())]

    def refusals(self) -> list[dict[str, Any]]:
        """Connections that were refused or cut off, failed TLS handshakes and refusals of the admin address."""
        return [
            {"what": what, "reason": reason, "count": count} for (what, reason), count in sorted(self._refusals.items())
        ]

    def calls(self, names: Mapping[str, str]) -> list[dict[str, Any]]:
        """Each app's calls to another, since the supervisor started. names: of the apps, by their addresses."""
        return [
            {"from": app, "to": names[address], "calls": calls, "errors": errors}
            for (app, address), (calls, errors) in sorted(self._client_calls.items())
            if address in names
        ]

    def _add(self, name: str, attributes: Mapping[str, Any], value: float | Buckets) -> None:
        app, shard = attributes.get("onelane.app", ""), attributes.get("onelane.shard", "")
        if name == CLIENT_DURATION and isinstance(value, Buckets):
            self._add_client_calls(app, attributes, value.count)
            return
        if (helper := attributes.get("onelane.offload")) is not None:
            self._add_helper(app, shard, helper, name, value)
        elif isinstance(value, Buckets):
            return
        elif name in (DROPPED.name, LOST.name, GAPS.name):
            signal, reason = attributes.get("onelane.signal", ""), attributes.get("onelane.reason", "")
            loss = " ".join(part for part in (signal, name.removeprefix("onelane."), reason) if part)
            self._losses[loss] += value
        elif name in REFUSED_THINGS:
            # A TLS handshake that has not failed has neither.
            if cause := attributes.get("onelane.reason") or attributes.get("error.type"):
                self._refusals[REFUSED_THINGS[name], cause] += value
        elif name != "onelane.connections" or attributes.get("onelane.connection.steered") == "true":
            self._by_shard[name, app, shard] += value

    def _add_client_calls(self, app: str, attributes: Mapping[str, Any], count: int) -> None:
        host, port = attributes.get("server.address", ""), attributes.get("server.port")
        address = f"unix:{host}" if port is None else addresses.join(host, int(port))
        failed = attributes.get("rpc.response.status_code", "OK") not in ("OK", "CANCELLED")
        calls, errors = self._client_calls.get((app, address), (0, 0))
        self._client_calls[app, address] = (calls + count, errors + count * failed)

    def _add_helper(self, app: str, shard: str, helper: str, name: str, value: float | Buckets) -> None:
        row = self._helpers.setdefault((app, shard, helper), {"depth": 0, "wait_p95": 0.0, "run_p95": 0.0})
        if isinstance(value, Buckets):
            column = {"onelane.offload.wait": "wait_p95", "onelane.offload.duration": "run_p95"}.get(name)
            if column:
                row[column] = value.quantile(0.95)
        elif name == "onelane.queue.depth":
            row["depth"] = int(value)


def _shard(app: AppSupervisor, shard: SupervisedShard, sums: _Sums) -> dict[str, Any]:
    source = app.source(shard)
    return {
        "name": shard.member.name,
        "index": shard.index,
        "pid": shard.pid,
        "address": shard.member.address,
        "state": shard.label,
        "restarts": shard.restarts,
        "calls": int(sums.of("onelane.calls", source)),
        "forwarded": int(sums.of("onelane.forwards", source)),
        "connections": int(sums.of("onelane.connections.open", source)),
        "steered": int(sums.of("onelane.connections", source)),
        "stalls": int(sums.of("onelane.stalls", source)),
        "in_flight": int(sums.of("onelane.calls.in_flight", source)),
        "lag_s": sums.of("onelane.lane.lag", source),
        "load": sums.of("onelane.lane.utilization", source),
        "keyed": shard.keyed,
        "last_stalls": [asdict(stall) for stall in shard.stalls],
    }


def _method(name: str, method: MethodHistory, steps: int) -> dict[str, Any]:
    latest = list(method.steps)[-RECENT_S:]
    seconds = max(1, len(latest))
    return {
        "name": name,
        "now": {
            "calls": sum(step.calls for step in latest) / seconds,
            "errors": sum(step.errors for step in latest) / seconds,
            **_quantiles(method.merged(RECENT_S)),
        },
        "steps": [_step(step) for step in list(method.steps)[-steps:]],
    }


def _step(step: Step) -> dict[str, Any]:
    return {"at": step.at_s, "calls": step.calls, "errors": step.errors, **_quantiles(step.durations)}


def _quantiles(spread: Buckets) -> dict[str, float]:
    return {"p50": spread.quantile(0.5), "p95": spread.quantile(0.95), "p99": spread.quantile(0.99)}


def ring(placement: Placement, shard_addresses: Sequence[str]) -> dict[str, Any]:
    """Each shard's share of the ring, and the owner, by its index, in the middle of each of `RING_SLICES` slices: null
    where that is a shard of another machine. No slices while there is no owner.

    shard_addresses: of this machine's shards by their index, also those that own nothing now.
    """
    if not placement.members:
        return {"points": placement.points, "shares": [0.0 for _ in shard_addresses], "skew": 1.0, "slices": []}
    indices = {address: index for index, address in enumerate(shard_addresses)}
    owned = placement.ring.shares()
    shares = [owned.get(address, 0.0) for address in shard_addresses]
    slices = [indices.get(placement.ring.owner_at((at * 2 + 1) / (2 * RING_SLICES))) for at in range(RING_SLICES)]
    return {
        "points": placement.points,
        "shares": shares,
        "skew": max(owned.values()) * len(placement.members),
        "slices": slices,
    }
