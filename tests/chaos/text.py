"""Figures as text, for people."""

from collections import Counter
from collections.abc import Sequence


def words(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items())) or "-"


def quantiles(seconds: Sequence[float]) -> str:
    """seconds: sorted."""
    if not seconds:
        return "-"
    p50, p99 = (seconds[int(len(seconds) * share)] for share in (0.5, 0.99))
    return f"p50 {p50 * 1e3:.1f}, p99 {p99 * 1e3:.1f}, max {seconds[-1] * 1e3:.1f}"
