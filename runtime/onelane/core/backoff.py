"""When to try again: full jitter, so that those who failed together do not return together."""

from random import Random


def backoff_s(attempt: int, *, base_s: float, cap_s: float, rng: Random) -> float:
    """How long to wait before a retry, in seconds: full jitter in [0, min(cap, base · 2^n)].

    attempt: n, 0 for the first retry.
    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    return rng.uniform(0.0, min(cap_s, base_s * 2.0 ** min(attempt, 32)))
