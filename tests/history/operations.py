"""What clients asked of one key, and what they were answered."""

import math
from dataclasses import dataclass

UNKNOWN = None
"""The result of an operation that was not acknowledged: it may have happened, at any time after its call, or never."""


@dataclass(frozen=True, slots=True)
class Add:
    """Adds to the number, and answers the sum."""

    amount: int
    """Not negative."""

    def apply(self, value: int) -> tuple[int, int]:
        """The value after it, and its result."""
        return value + self.amount, value + self.amount


@dataclass(frozen=True, slots=True)
class Put:
    """Replaces the number, and answers it."""

    amount: int

    def apply(self, value: int) -> tuple[int, int]:
        return self.amount, self.amount


@dataclass(frozen=True, slots=True)
class Read:
    """Answers the number."""

    def apply(self, value: int) -> tuple[int, int]:
        return value, value


@dataclass(frozen=True, slots=True)
class Lose:
    """The process of the key's owner was killed, and a state that was not durable with it. Always of unknown result:
    the key may have had another owner."""

    number: int
    """Of the kill."""

    def apply(self, value: int) -> tuple[int, int]:
        return 0, 0


Request = Add | Put | Read | Lose


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of one key, by the clock of all clients."""

    key: str
    request: Request
    called_at: float
    answered_at: float = math.inf
    """Where the result is unknown: when it can have happened at the latest. Only `Lose` has such an end."""
    result: int | None = UNKNOWN

    def value_before(self) -> int | None:
        """The number that its result is explained by; `UNKNOWN` where every number does."""
        match self.request:
            case Add(amount) if self.result is not UNKNOWN:
                return self.result - amount
            case Read():
                return self.result
        return UNKNOWN
