"""What the echo service's settings may be, for the tests of reloading."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field


@dataclass(frozen=True)
class EchoSettings:
    limit: Annotated[int, Field(ge=1)] = 1
    greeting: str = "hello"


@dataclass
class NotFrozen:
    limit: int = 1
