"""What becomes of a call to another service that fails or is late: tried again, hedged, sent elsewhere, or let fail.

Promises: only what is safe to repeat is repeated, within a budget and within the call's deadline; an endpoint that
fails on and on is left alone for a while, and asked again. Pure: time, chance and outcomes are handed in.
Source: gRFC A6 (retries, hedging, pushback, throttling), A50 (outlier detection).
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from onelane.core.service_config import MOST_ATTEMPTS, RetryThrottling, ServiceConfig
from onelane.errors import BadService

PUSHBACK = "grpc-retry-pushback-ms"
PREVIOUS = "grpc-previous-rpc-attempts"
SAFE = frozenset({"NO_SIDE_EFFECTS", "IDEMPOTENT"})
"""The idempotency levels of methods that may be repeated whatever became of the first attempt."""
NO_SIDE_EFFECTS = "NO_SIDE_EFFECTS"
FAILURES = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL"})
"""What speaks against an endpoint, and not against the call."""


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
            attempts=min(hedging.maxAttempts, MOST_ATTEMPTS),
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
        attempts=min(retry.maxAttempts, MOST_ATTEMPTS),
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
    grown = policy.initial_backoff_s * policy.multiplier ** (made - 1)
    return rng.uniform(0.0, min(policy.max_backoff_s, grown))


CONSECUTIVE = 5
"""Failures in a row that eject an endpoint."""
WINDOW = 50
"""Calls, the newest, whose share of failures ejects it as well."""
SHARE = 0.5
FIRST_EJECTION_S = 1.0
LONGEST_EJECTION_S = 30.0


class Endpoint:
    """What is known of one endpoint's health. Owned by its channel."""

    __slots__ = ("_failures", "_in_a_row", "_probing", "_recent", "_times", "_until")

    def __init__(self) -> None:
        self._in_a_row = 0
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        """Whether each of the newest calls failed."""
        self._failures = 0
        self._until: float | None = None
        """Ejected until then; None: not."""
        self._times = 0
        """Ejections without a success between."""
        self._probing = False

    @property
    def is_ejected(self) -> bool:
        return self._until is not None

    def allows(self, now: float) -> bool:
        """Whether a call may go there. After an ejection one call is a probe, and decides for the others."""
        if self._until is None:
            return True
        if now < self._until or self._probing:
            return False
        self._probing = True
        return True

    def ended(self, code: str, now: float) -> bool:
        """A call there has ended; whether that ejects the endpoint."""
        failed = code in FAILURES
        if not failed and self._until is None and not self._failures:
            # The path of nearly every call.
            return False
        return self._failed(now) if failed else self._succeeded()

    def _succeeded(self) -> bool:
        self._in_a_row = 0
        if self._probing or self._until is None:
            if self._until is not None:
                self._until, self._probing, self._times = None, False, 0
                self._forget()
            else:
                self._remember(failed=False)
        return False

    def _failed(self, now: float) -> bool:
        if self._until is not None and not self._probing:
            # One that was sent before the ejection.
            return False
        self._in_a_row += 1
        self._remember(failed=True)
        full = len(self._recent) == WINDOW and self._failures >= WINDOW * SHARE
        if not (self._probing or self._in_a_row >= CONSECUTIVE or full):
            return False
        self._times += 1
        self._until = now + min(LONGEST_EJECTION_S, FIRST_EJECTION_S * 2.0 ** (self._times - 1))
        self._probing = False
        self._forget()
        return True

    def _remember(self, *, failed: bool) -> None:
        if len(self._recent) == WINDOW:
            self._failures -= self._recent[0]
        self._recent.append(failed)
        self._failures += failed

    def _forget(self) -> None:
        self._recent.clear()
        self._failures = self._in_a_row = 0
