"""gRPC's service config, as far as it says how calls are made: timeouts, retries, hedging.

Source: grpc/grpc-proto service_config.proto, gRFC A6. Names and durations ("0.1s") are gRPC's own JSON.
"""

import re
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

CODES = (
    *("CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)
"""Every status but OK, by its number from 1."""
MOST_ATTEMPTS = 5
"""gRFC A6: a larger `maxAttempts` is treated as this."""


def _seconds(value: Any) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d{1,9})?)s", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('expected a duration such as "0.1s"')
    return float(match[1])


def _codes(value: Any) -> Any:
    if isinstance(value, frozenset):
        return value
    names = [
        CODES[code - 1] if isinstance(code, int) and 0 < code <= len(CODES) else str(code).upper() for code in value
    ]
    if unknown := [name for name in names if name not in CODES]:
        raise ValueError(f"{unknown} are no statuses, expected such as UNAVAILABLE")
    return frozenset(names)


Duration = Annotated[float, BeforeValidator(_seconds), PlainSerializer(lambda seconds: f"{seconds:.9f}s")]
Codes = Annotated[frozenset[str], BeforeValidator(_codes)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Name(_Model):
    """Which methods: of one service, one method of it, or (neither) all."""

    service: str = ""
    method: str = ""


class RetryPolicy(_Model):
    """Try again, one attempt after the other."""

    maxAttempts: Annotated[int, Field(ge=2)]
    initialBackoff: Duration
    maxBackoff: Duration
    backoffMultiplier: Annotated[float, Field(gt=0)]
    retryableStatusCodes: Annotated[Codes, Field(min_length=1)]


class HedgingPolicy(_Model):
    """Ask again before the first has answered."""

    maxAttempts: Annotated[int, Field(ge=2)]
    hedgingDelay: Duration = 0.0
    nonFatalStatusCodes: Codes = frozenset()


class MethodConfig(_Model):
    """How calls of some methods are made."""

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
    """The budget of all methods together: a failure costs one token, a success gives `tokenRatio` back; while half of
    `maxTokens` or less are left, nothing is tried again."""

    maxTokens: Annotated[float, Field(gt=0, le=1000)] = 100.0
    tokenRatio: Annotated[float, Field(gt=0)] = 0.1


class ServiceConfig(_Model):
    """How calls to one peer are made."""

    methodConfig: tuple[MethodConfig, ...] = ()
    retryThrottling: RetryThrottling = RetryThrottling()
    max_in_flight: Annotated[int, Field(ge=1)] = 1000
    """Calls to the peer at once; one more is RESOURCE_EXHAUSTED, unsent. Ours, not gRPC's."""

    def of(self, method: str) -> MethodConfig | None:
        """The config of `pkg.Service/Method`: by the name of the method, else of its service, else the default."""
        service, _, name = method.rpartition("/")
        for wanted in (Name(service=service, method=name), Name(service=service), Name()):
            for method_config in self.methodConfig:
                if wanted in method_config.name:
                    return method_config
        return None
