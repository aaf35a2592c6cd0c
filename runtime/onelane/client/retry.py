"""When another attempt of a call that failed is made: whether the method may be repeated, after which statuses, how
soon, and within which budget.

Promises: only methods that are safe to repeat are retried, within a budget and within the call's deadline.
Pure: time, chance and outcomes are handed in. Source: gRFC A6 (retries, hedging, pushback, throttling).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from onelane.core.backoff import PUSHBACK, backoff_s
from onelane.core.service_config import MAX_ATTEMPTS, RetryThrottling, ServiceConfig
from onelane.errors import BadService

NO_SIDE_EFFECTS, IDEMPOTENT = "NO_SIDE_EFFECTS", "IDEMPOTENT"
SAFE_LEVELS = frozenset({NO_SIDE_EFFECTS, IDEMPOTENT})
"""The idempotency levels of methods that may be repeated whatever became of the first attempt."""


@dataclass(frozen=True, slots=True)
class CallPolicy:
    """How calls of one method are made."""

    attempts: int = 1
    """At most, the first included."""
    initial_backoff_s: float = 0.05
    max_backoff_s: float = 1.0
    multiplier: float = 2.0
    codes: frozenset[str] = frozenset()
    """Statuses after which another attempt is made; of a hedged call, those that do not end it."""
    hedge_after_s: float | None = None
    """Make the next attempt after this long, whatever becomes of the others; None: only after one has failed."""
    timeout_s: float | None = None
    wait_for_ready: bool | None = None
    follows_pushback: bool = False
    """RESOURCE_EXHAUSTED is retried too, where the server names a time: then it has not begun the call."""


NO_RETRY = CallPolicy()
SAFE_RETRY = CallPolicy(attempts=3, codes=frozenset({"UNAVAILABLE"}), follows_pushback=True)
"""Of methods that are safe to repeat, unless a service config says otherwise."""


def policy_of(method: str, idempotency_level: str, config: ServiceConfig) -> CallPolicy:
    """How `pkg.Service/Method` is called. idempotency_level: as in its proto; "" where unknown.

    Raises:
        BadService: hedging of a method that may have side effects.
    """
    default = SAFE_RETRY if idempotency_level in SAFE_LEVELS else NO_RETRY
    method_config = config.of(method)
    if method_config is None:
        return default
    if method_config.hedgingPolicy is not None:
        if idempotency_level != NO_SIDE_EFFECTS:
            raise BadService(
                f"{method}: hedgingPolicy makes a call several times at once, and its idempotency_level is "
                f"{idempotency_level or 'unknown'}, expected NO_SIDE_EFFECTS"
            )
        hedging = method_config.hedgingPolicy
        return CallPolicy(
            attempts=min(hedging.maxAttempts, MAX_ATTEMPTS),
            codes=hedging.nonFatalStatusCodes,
            hedge_after_s=hedging.hedgingDelay,
            timeout_s=method_config.timeout,
            wait_for_ready=method_config.waitForReady,
        )
    if method_config.retryPolicy is None:
        return CallPolicy(
            default.attempts,
            codes=default.codes,
            timeout_s=method_config.timeout,
            wait_for_ready=method_config.waitForReady,
            follows_pushback=default.follows_pushback,
        )
    retry = method_config.retryPolicy
    return CallPolicy(
        attempts=min(retry.maxAttempts, MAX_ATTEMPTS),
        initial_backoff_s=retry.initialBackoff,
        max_backoff_s=retry.maxBackoff,
        multiplier=retry.backoffMultiplier,
        codes=retry.retryableStatusCodes,
        timeout_s=method_config.timeout,
        wait_for_ready=method_config.waitForReady,
    )


class RetryBudget:
    """How many failures may be followed by another attempt, over all methods of one peer. gRFC A6, throttling."""

    __slots__ = ("_max_tokens", "_ratio", "tokens")

    def __init__(self, throttling: RetryThrottling) -> None:
        self._max_tokens = self.tokens = throttling.maxTokens
        self._ratio = throttling.tokenRatio

    def succeeded(self) -> None:
        if self.tokens < self._max_tokens:
            self.tokens = min(self._max_tokens, self.tokens + self._ratio)

    def failed(self) -> None:
        self.tokens = max(0.0, self.tokens - 1.0)

    @property
    def allows(self) -> bool:
        return self.tokens > self._max_tokens / 2


def pushback_s(trailers: Iterable[tuple[str, object]]) -> float | None:
    """The pushback in a server's trailers: seconds to wait, -1 for no further attempt, None where there is none."""
    for name, value in trailers:
        if name == PUSHBACK:
            text = str(value)
            return int(text) / 1000 if text.isdigit() else -1.0
    return None


def retry_after_s(
    policy: CallPolicy, attempts: int, code: str, pushback: float | None, budget: RetryBudget, rng: Random
) -> float | None:
    """Seconds to wait before another attempt of a call that failed; None: there is none. Counts against the budget.

    attempts: made so far. pushback: see `pushback_s`.
    """
    is_retryable = code in policy.codes or (
        policy.follows_pushback and code == "RESOURCE_EXHAUSTED" and pushback is not None
    )
    if not is_retryable:
        return None
    budget.failed()
    if attempts >= policy.attempts or not budget.allows or (pushback is not None and pushback < 0):
        return None
    if pushback is not None:
        return pushback
    return backoff_s(
        attempts - 1,
        base_s=policy.initial_backoff_s,
        cap_s=policy.max_backoff_s,
        growth=policy.multiplier,
        rng=rng,
    )
