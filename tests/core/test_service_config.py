"""A service config is gRPC's own JSON, with every fault named."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.core.service_config import STATUS_NAMES, Name, RetryPolicy, ServiceConfig, read_service_config
from onelane.core.validation import checked, from_json, to_json
from pydantic import ValidationError

RETRY = {
    "maxAttempts": 4,
    "initialBackoff": "0.001s",
    "maxBackoff": "0.01s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", 10],
}
WHO = [{"service": "echo.v1.Echo", "method": "Who"}]


def configured(**config: Any) -> ServiceConfig:
    return read_service_config({"methodConfig": [{"name": WHO, **config}]})


def test_durations_are_seconds_and_statuses_are_names_or_codes() -> None:
    (method_config,) = configured(timeout="1.5s", waitForReady=True, retryPolicy=RETRY).methodConfig
    assert (method_config.timeout, method_config.waitForReady) == (1.5, True)
    retry = method_config.retryPolicy
    assert retry is not None
    assert (retry.initialBackoff, retry.maxBackoff) == (0.001, 0.01)
    assert retry.retryableStatusCodes == frozenset({"UNAVAILABLE", "ABORTED"})


@given(st.integers(1, len(STATUS_NAMES)))
def test_a_status_is_the_same_by_code_and_by_name(code: int) -> None:
    names, codes = (
        checked(RetryPolicy, RETRY | {"retryableStatusCodes": [status]})
        for status in (STATUS_NAMES[code - 1].lower(), code)
    )
    assert names == codes


@pytest.mark.parametrize(
    ("method", "timeout"), [("echo.v1.Echo/Who", 1.0), ("echo.v1.Echo/Other", 2.0), ("other.Service/Who", 3.0)]
)
def test_the_config_of_a_method_is_its_own_else_its_services_else_the_default(method: str, timeout: float) -> None:
    config = read_service_config(
        {
            "methodConfig": [
                {"name": [{}], "timeout": "3s"},
                {"name": [{"service": "echo.v1.Echo"}], "timeout": "2s"},
                {"name": WHO, "timeout": "1s"},
            ]
        }
    )
    method_config = config.of(method)
    assert method_config is not None
    assert method_config.timeout == timeout


def test_a_method_that_no_name_matches_has_no_config() -> None:
    assert configured(timeout="1s").of("echo.v1.Echo/Other") is None


def test_a_service_and_a_method_of_it_are_different_names() -> None:
    assert Name(service="a.B") != Name(service="a.B", method="C")


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({"timeout": "1"}, 'expected a duration such as "0.1s"'),
        ({"retryPolicy": RETRY | {"maxAttempts": 1}}, "greater than or equal to 2"),
        ({"retryPolicy": RETRY | {"retryableStatusCodes": ["SAD"]}}, "are no gRPC statuses"),
        ({"retryPolicy": RETRY | {"retryableStatusCodes": [0]}}, "are no gRPC statuses"),
        ({"retryPolicy": RETRY, "hedgingPolicy": {"maxAttempts": 2}}, "both a retryPolicy and a hedgingPolicy"),
        ({"retrypolicy": RETRY}, "retrypolicy"),
    ],
)
def test_a_config_that_is_not_valid_names_its_fault(config: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError) as caught:
        configured(**config)
    assert fault in str(caught.value)


def test_a_config_is_the_same_after_a_trip_through_json() -> None:
    config = configured(retryPolicy=RETRY, timeout="0.25s")
    assert from_json(ServiceConfig, to_json(config)) == config
