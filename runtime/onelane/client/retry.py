"""What becomes of a call to another service that fails or is late: tried again, hedged, sent elsewhere, or let fail.

Promises: only what is safe to repeat is repeated, within a budget and within the call's deadline; an endpoint that
fails on and on is left alone for a while, and asked again. Pure: time, chance and outcomes are handed in.
Source: gRFC A6 (retries, hedging, pushback, throttling), A50 (outlier detection).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from onelane.core.backoff import backoff_s
from onelane.core.service_config import MAX_ATTEMPTS, RetryThrottling, ServiceConfig
from onelane.errors import BadService

PUSHBACK = "grpc-retry-pushback-ms"
SAFE = frozenset({"NO_SIDE_EFFECTS", "IDEMPOTENT"})
"""The idempotency levels of methods that may be repeated whatever became of the first attempt."""
NO_SIDE_EFFECTS = "NO_SIDE_EFFECTS"


@dataclass(frozen=True, slots=True)
class Policy:
    """How calls of one method are made."""

    attempts: int = 1
    """In all."""
    initial_backoff_s: float = 0.05
    max_backoff_s: float = 1.0
    multiplier: float = 2.0
    codes: frozenset[str] = frozenset()
    """Statuses after which another attempt is made; when hedging, those that do not end it."""
    hedge_after_s: float | None = None
    """Make the next attempt after this long, whatever the others do; None: only after one has failed."""
    timeout_s: float | None = None
    wait_for_ready: bool | None = None
    follows_pushback: bool = False
    """RESOURCE_EXHAUSTED is tried again too, where the server says when: it has not begun the call."""


ONCE = Policy()
AGAIN = Policy(attempts=3, codes=frozenset({"UNAVAILABLE"}), follows_pushback=True)
"""Of methods that are safe to repeat, unless a service config says otherwise."""


def policy_of(method: str, level: str, said: ServiceConfig) -> Policy:
    """How `pkg.Service/Method` is called. level: its proto's `idempotency_level`.

    Raises:
        BadService: hedging of a method that may have side effects.
    """
    usual = AGAIN if level in SAFE else ONCE
    one = said.of(method)
    if one is None:
        return usual
    if one.hedgingPolicy is not None:
        if level != NO_SIDE_EFFECTS:
            raise BadService(
                f"{method}: hedgingPolicy makes a call several times at once, and its idempotency_level is "
                f"{level or 'unknown'}, expected NO_SIDE_EFFECTS"
            )
        hedging = one.hedgingPolicy
        return Policy(
            attempts=min(hedging.maxAttempts, MAX_ATTEMPTS),
            codes=hedging.nonFatalStatusCodes,
            hedge_after_s=hedging.hedgingDelay,
            timeout_s=one.timeout,
            wait_for_ready=one.waitForReady,
        )
    if one.retryPolicy is None:
        return Policy(
            usual.attempts,
            codes=usual.codes,
            timeout_s=one.timeout,
            wait_for_ready=one.waitForReady,
            follows_pushback=usual.follows_pushback,
        )
    retry = one.retryPolicy
    return Policy(
        attempts=min(retry.maxAttempts, MAX_ATTEMPTS),
        initial_backoff_s=retry.initialBackoff,
        max_backoff_s=retry.maxBackoff,
        multiplier=retry.backoffMultiplier,
        codes=retry.retryableStatusCodes,
        timeout_s=one.timeout,
        wait_for_ready=one.waitForReady,
    )


class Budget:
    """How many failures may be answered by another attempt, over all methods of one peer. gRFC A6, throttling."""

    __slots__ = ("_most", "_ratio", "tokens")

    def __init__(self, throttling: RetryThrottling) -> None:
        self._most = self.tokens = throttling.maxTokens
        self._ratio = throttling.tokenRatio

    def succeeded(self) -> None:
        if self.tokens < self._most:
            self.tokens = min(self._most, self.tokens + self._ratio)

    def failed(self) -> None:
        self.tokens = max(0.0, self.tokens - 1.0)

    @property
    def allows(self) -> bool:
        return self.tokens > self._most / 2


def pushback_s(trailers: Iterable[tuple[str, object]]) -> float | None:
    """What a server says of another attempt: seconds to wait, -1 for none at all, None where it says nothing."""
    for name, value in trailers:
        if name == PUSHBACK:
            text = str(value)
            return int(text) / 1000 if text.isdigit() else -1.0
    return None


def wait_s(policy: Policy, made: int, code: str, pushed_s: float | None, budget: Budget, rng: Random) -> float | None:
    """How long to wait for the next attempt after one that failed; None: there is none. Counts against the budget.

    made: attempts so far. pushed_s: see `pushback_s`.
    """
    repeats = code in policy.codes or (
        policy.follows_pushback and code == "RESOURCE_EXHAUSTED" and pushed_s is not None
    )
    if not repeats:
        return None
    budget.failed()
    if made >= policy.attempts or not budget.allows or (pushed_s is not None and pushed_s < 0):
        return None
    if pushed_s is not None:
        return pushed_s
    return backoff_s(
        made - 1,
        base_s=policy.initial_backoff_s,
        cap_s=policy.max_backoff_s,
        growth=policy.multiplier,
        rng=rng,
    )
