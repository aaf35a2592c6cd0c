"""How long to wait before another attempt: longer each time, and jittered, so that clients that failed at the same time
do not retry at the same time."""

from random import Random

FULL_JITTER = (0.0, 1.0)
"""From no wait up to the whole back-off. Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015."""
MAX_EXPONENT = 64
"""Attempts after which the back-off stops growing, whatever its cap, so that the power cannot overflow."""
PUSHBACK = "grpc-retry-pushback-ms"
"""Trailer by which a server says when a refused call may be tried again. gRFC A6."""


def exponential_s(attempt: int, *, base_s: float, cap_s: float, growth: float = 2.0) -> float:
    """min(cap, base · growth^n), in seconds. attempt: n, from 0."""
    return min(cap_s, base_s * growth ** min(attempt, MAX_EXPONENT))


def backoff_s(
    attempt: int,
    *,
    base_s: float,
    cap_s: float,
    rng: Random,
    growth: float = 2.0,
    jitter: tuple[float, float] = FULL_JITTER,
) -> float:
    """Seconds to wait before a retry: `exponential_s`, times a random factor within `jitter`.

    attempt: 0 for the first retry.
    """
    return exponential_s(attempt, base_s=base_s, cap_s=cap_s, growth=growth) * rng.uniform(*jitter)
