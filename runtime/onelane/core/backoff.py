"""How long to wait before another attempt: longer each time, and jittered, so that clients which failed together do
not come back together."""

from random import Random

FULL_JITTER = (0.0, 1.0)
"""Anything up to the back-off itself. Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015."""
MAX_EXPONENT = 64
"""Attempts after which the back-off grows no more, whatever its cap; so that no power overflows."""


def backoff_s(
    attempt: int,
    *,
    base_s: float,
    cap_s: float,
    rng: Random,
    growth: float = 2.0,
    jitter: tuple[float, float] = FULL_JITTER,
) -> float:
    """Seconds to wait before a retry: min(cap, base · growth^n), times a random factor within `jitter`.

    attempt: n, 0 for the first retry.
    """
    return min(cap_s, base_s * growth ** min(attempt, MAX_EXPONENT)) * rng.uniform(*jitter)
