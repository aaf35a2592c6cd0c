"""gRPC's service config, the part about calls: timeouts, retries, hedging.

Source: grpc/grpc-proto service_config.proto, gRFC A6. Names and durations ("0.1s") are gRPC's own JSON.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, MinLen

from onelane.core.validation import Checked, Convert, checked

STATUS_NAMES = (
    *("CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)
"""The names of all gRPC statuses but OK, by their code, from 1."""
MAX_ATTEMPTS = 5
"""gRFC A6: a larger `maxAttempts` is treated as this."""


def _seconds(value: Any) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d{1,9})?)s", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('expected a duration such as "0.1s"')
    return float(match[1])


def _codes(value: Any) -> Any:
    if isinstance(value, frozenset):
        return value
    names = [_status_name(code) for code in value]
    if unknown := [name for name in names if name not in STATUS_NAMES]:
        raise ValueError(f"{unknown} are no gRPC statuses, expected names such as UNAVAILABLE, or their codes")
    return frozenset(names)


def _status_name(code: Any) -> str:
    return STATUS_NAMES[code - 1] if isinstance(code, int) and 0 < code <= len(STATUS_NAMES) else str(code).upper()


Duration = Annotated[float, Convert(_seconds)]
Codes = Annotated[frozenset[str], Convert(_codes)]


@dataclass(frozen=True, kw_only=True)
class Name(Checked):
    """The methods that a config is for: those of a service, one method of it, or, without either, all."""

    service: str = ""
    """`pkg.Service`; without it, every service."""
    method: str = ""
    """The method of that service; without it, all of its methods."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy(Checked):
    """Retry a failed call, one attempt after the other."""

    maxAttempts: Annotated[int, Ge(2)]
    """Attempts of one call, the first one among them; more than five are five."""
    initialBackoff: Duration
    """The longest pause before the first retry; the pause is a random part of it."""
    maxBackoff: Duration
    """The longest pause before any retry."""
    backoffMultiplier: Annotated[float, Gt(0)]
    """By how much the longest pause grows from one retry to the next."""
    retryableStatusCodes: Annotated[Codes, MinLen(1)]
    """The statuses after which a call is retried."""


@dataclass(frozen=True, kw_only=True)
class HedgingPolicy(Checked):
    """Send further attempts of a call before the first has been answered."""

    maxAttempts: Annotated[int, Ge(2)]
    """Attempts of one call, the first one among them; more than five are five."""
    hedgingDelay: Duration = 0.0
    """Pause before the next attempt is sent."""
    nonFatalStatusCodes: Codes = frozenset()
    """Statuses after which the next attempt is sent at once; any other status ends the call."""


@dataclass(frozen=True, kw_only=True)
class MethodConfig(Checked):
    """The config of some methods' calls."""

    name: Annotated[tuple[Name, ...], MinLen(1)]
    """The methods."""
    timeout: Duration | None = None
    """Deadline of a call that has none, or a later one."""
    waitForReady: bool | None = None
    """Whether a call waits until there is a connection; by default it fails where connecting has failed."""
    retryPolicy: RetryPolicy | None = None
    """One attempt after the other."""
    hedgingPolicy: HedgingPolicy | None = None
    """Several attempts at once; only for methods with `NO_SIDE_EFFECTS`."""

    def __post_init__(self) -> None:
        if self.retryPolicy is not None and self.hedgingPolicy is not None:
            raise ValueError("has both a retryPolicy and a hedgingPolicy, expected one of them")


@dataclass(frozen=True, kw_only=True)
class RetryThrottling(Checked):
    """The retry budget of all methods together: a failure costs one token, a success returns `tokenRatio`; no call is
    retried while half of `maxTokens` or less are left."""

    maxTokens: Annotated[float, Gt(0), Le(1000)] = 100.0
    """The size of the budget."""
    tokenRatio: Annotated[float, Gt(0)] = 0.1
    """What a success returns to it."""


@dataclass(frozen=True, kw_only=True)
class ServiceConfig(Checked):
    """The config of calls to one peer."""

    methodConfig: tuple[MethodConfig, ...] = ()
    """Timeouts, retries and hedging, by method."""
    retryThrottling: RetryThrottling = field(default_factory=RetryThrottling)
    """The retry budget."""
    max_in_flight: Annotated[int, Ge(1)] = 1000
    """Concurrent calls to the peer; a further call ends with RESOURCE_EXHAUSTED, unsent. No setting of gRPC's own."""

    def of(self, method: str) -> MethodConfig | None:
        """The config of `pkg.Service/Method`: by the name of the method, else of its service, else the default."""
        service, _, name = method.rpartition("/")
        for candidate in (Name(service=service, method=name), Name(service=service), Name()):
            for method_config in self.methodConfig:
                if candidate in method_config.name:
                    return method_config
        return None


def read_service_config(values: Mapping[str, Any]) -> ServiceConfig:
    """The service config of gRPC's JSON, as a mapping.

    Raises:
        ValueError: it is not valid.
    """
    return checked(ServiceConfig, values)
