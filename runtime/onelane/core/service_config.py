"""gRPC's service config, the part about calls: timeouts, retries, hedging.

Source: grpc/grpc-proto service_config.proto, gRFC A6. Names and durations ("0.1s") are gRPC's own JSON.
"""

import re
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

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


Duration = Annotated[float, BeforeValidator(_seconds), PlainSerializer(lambda seconds: f"{seconds:.9f}s")]
Codes = Annotated[frozenset[str], BeforeValidator(_codes)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Name(_Model):
    """The methods that a config is for: those of a service, one method of it, or, without either, all."""

    service: str = ""
    method: str = ""


class RetryPolicy(_Model):
    """Retry a failed call, one attempt after the other."""

    maxAttempts: Annotated[int, Field(ge=2)]
    initialBackoff: Duration
    maxBackoff: Duration
    backoffMultiplier: Annotated[float, Field(gt=0)]
    retryableStatusCodes: Annotated[Codes, Field(min_length=1)]


class HedgingPolicy(_Model):
    """Send further attempts of a call before the first has been answered."""

    maxAttempts: Annotated[int, Field(ge=2)]
    hedgingDelay: Duration = 0.0
    nonFatalStatusCodes: Codes = frozenset()


class MethodConfig(_Model):
    """The config of some methods' calls."""

    name: Annotated[tuple[Name, ...], Field(min_length=1)]
    timeout: Duration | None = None
    waitForReady: bool | None = None
    retryPolicy: RetryPolicy | None = None
    hedgingPolicy: HedgingPolicy | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.retryPolicy is not None and self.hedgingPolicy is not None:
            raise ValueError("has both a retryPolicy and a hedgingPolicy, expected one of them")
        return self


class RetryThrottling(_Model):
    """The retry budget of all methods together: a failure costs one token, a success returns `tokenRatio`; no call is
    retried while half of `maxTokens` or less are left."""

    maxTokens: Annotated[float, Field(gt=0, le=1000)] = 100.0
    tokenRatio: Annotated[float, Field(gt=0)] = 0.1


class ServiceConfig(_Model):
    """The config of calls to one peer."""

    methodConfig: tuple[MethodConfig, ...] = ()
    retryThrottling: RetryThrottling = RetryThrottling()
    max_in_flight: Annotated[int, Field(ge=1)] = 1000
    """Concurrent calls to the peer; a further call ends with RESOURCE_EXHAUSTED, unsent. No setting of gRPC's own."""

    def of(self, method: str) -> MethodConfig | None:
        """The config of `pkg.Service/Method`: by the name of the method, else of its service, else the default."""
        service, _, name = method.rpartition("/")
        for candidate in (Name(service=service, method=name), Name(service=service), Name()):
            for method_config in self.methodConfig:
                if candidate in method_config.name:
                    return method_config
        return None
