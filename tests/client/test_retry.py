"""Only what is safe to repeat is tried again, not at once, and within a budget."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.client.retry import NO_RETRY, SAFE_RETRY, CallPolicy, RetryBudget, policy_of, pushback_s, retry_after_s
from onelane.core.service_config import RetryThrottling, ServiceConfig
from onelane.errors import BadService

from tests.client.configs import RETRY, service_config


def test_only_what_is_safe_to_repeat_is_tried_again_unless_a_service_config_says_so() -> None:
    empty = ServiceConfig()
    assert policy_of("echo.v1.Echo/Who", "NO_SIDE_EFFECTS", empty) == SAFE_RETRY
    assert policy_of("echo.v1.Echo/Who", "IDEMPOTENT", empty) == SAFE_RETRY
    assert policy_of("echo.v1.Echo/Who", "", empty) == NO_RETRY
    configured = policy_of("echo.v1.Echo/Who", "", service_config(retryPolicy=RETRY, timeout="1.5s", waitForReady=True))
    assert configured.codes == frozenset({"UNAVAILABLE", "ABORTED"})
    assert (configured.attempts, configured.timeout_s, configured.wait_for_ready) == (4, 1.5, True)
    assert policy_of("echo.v1.Echo/Unary", "", service_config(retryPolicy=RETRY)) == NO_RETRY


def test_hedging_of_what_may_have_side_effects_is_refused() -> None:
    hedging = service_config(hedgingPolicy={"maxAttempts": 3, "hedgingDelay": "0.1s"})
    assert policy_of("echo.v1.Echo/Who", "NO_SIDE_EFFECTS", hedging).hedge_after_s == 0.1
    for level in ("IDEMPOTENT", ""):
        with pytest.raises(BadService, match="hedgingPolicy makes a call several times"):
            policy_of("echo.v1.Echo/Who", level, hedging)


@given(st.integers(1, 5), st.floats(0.001, 1), st.floats(0.001, 5), st.floats(1, 3), st.integers())
def test_the_wait_is_full_jitter_within_the_backoff(
    attempts: int, initial: float, longest: float, growth: float, seed: int
) -> None:
    policy = CallPolicy(6, initial, longest, growth, frozenset({"UNAVAILABLE"}))
    wait = retry_after_s(policy, attempts, "UNAVAILABLE", None, RetryBudget(RetryThrottling()), Random(seed))
    assert wait is not None
    assert 0 <= wait <= min(longest, initial * growth ** (attempts - 1))


def test_a_server_says_when_to_come_back_or_that_nobody_should() -> None:
    rng, budget = Random(1), RetryBudget(RetryThrottling())
    assert retry_after_s(SAFE_RETRY, 1, "RESOURCE_EXHAUSTED", None, budget, rng) is None
    assert retry_after_s(SAFE_RETRY, 1, "RESOURCE_EXHAUSTED", 0.25, budget, rng) == 0.25
    assert retry_after_s(SAFE_RETRY, 1, "UNAVAILABLE", -1.0, budget, rng) is None
    assert retry_after_s(SAFE_RETRY, SAFE_RETRY.attempts, "UNAVAILABLE", None, budget, rng) is None
    assert pushback_s([("grpc-retry-pushback-ms", "250")]) == 0.25
    assert pushback_s([("grpc-retry-pushback-ms", "never")]) == -1.0
    assert pushback_s([("other", "1")]) is None


@given(st.lists(st.booleans(), max_size=200))
def test_the_budget_lets_no_more_through_than_it_should(succeeds: list[bool]) -> None:
    budget = RetryBudget(RetryThrottling(maxTokens=10, tokenRatio=0.1))
    tokens = 10.0
    for good in succeeds:
        tokens = min(10.0, tokens + 0.1) if good else max(0.0, tokens - 1)
        budget.succeeded() if good else budget.failed()
        assert budget.tokens == pytest.approx(tokens)
        assert budget.allows is (budget.tokens > 5)
