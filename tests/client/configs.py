"""Service configs of the tests of calls."""

from typing import Any

from onelane.core.service_config import ServiceConfig, read_service_config

RETRY = {
    "maxAttempts": 4,
    "initialBackoff": "0.001s",
    "maxBackoff": "0.01s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", 10],
}
WHO = [{"service": "echo.v1.Echo", "method": "Who"}]
"""A method that is safe to repeat."""


def service_config(**method_config: Any) -> ServiceConfig:
    """How `Echo.Who` is called."""
    return read_service_config({"methodConfig": [{"name": WHO, **method_config}]})


def hedging(delay: str = "60s", **more: Any) -> dict[str, Any]:
    policy = {"maxAttempts": 3, "hedgingDelay": delay, "nonFatalStatusCodes": ["UNAVAILABLE"]}
    return {"methodConfig": [{"name": WHO, "hedgingPolicy": policy}], **more}
