"""The durable state of one shard, as its metrics tell it: for status, page and health."""

from typing import Any

from onelane.telemetry.collector.totals import Totals
from onelane.telemetry.stats import Attributes


def is_failing(source: Attributes, totals: Totals) -> bool:
    """Whether the last operation of a shard's store has failed."""
    return totals.value_of("onelane.state.failing", source) == 1.0


def store_status(store: str, source: Attributes, totals: Totals) -> dict[str, Any] | None:
    """None where no dict of the shard is durable. store: its kind. source: the attributes of its series."""
    residents = totals.value_of("onelane.state.residents", source)
    if residents is None:
        return None
    commits = totals.sum_of("onelane.state.commits", source)
    durations = totals.buckets_of("onelane.state.commit.duration", source)
    return {
        "store": store,
        "failing": is_failing(source, totals),
        "residents": int(residents),
        "commits": int(commits),
        "keys_per_commit": totals.sum_of("onelane.state.keys.written", source) / commits if commits else 0.0,
        "commit_p50_s": durations.quantile(0.5) if commits else 0.0,
        "commit_p99_s": durations.quantile(0.99) if commits else 0.0,
        "failures": totals.counts_by("onelane.state.failures", "onelane.operation", source),
    }
