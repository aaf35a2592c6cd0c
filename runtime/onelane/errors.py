"""What can go wrong, named by what happened, in three families by who must act.

Each class names the gRPC status that a client sees; `outcome.py` is the one place that turns an error into a status.
"""

from collections.abc import Sequence
from typing import ClassVar


class OnelaneError(Exception):
    """Root of all that this runtime raises."""

    status: ClassVar[str] = "UNKNOWN"
    """The name of the gRPC status that a client sees."""


class Invalid(OnelaneError):
    """The caller must change something; the same call will fail again."""

    status = "INVALID_ARGUMENT"


class Transient(OnelaneError):
    """No one is at fault; the same call may succeed later, or elsewhere."""

    status = "UNAVAILABLE"


class Internal(OnelaneError):
    """We broke a promise of our own: a bug here. Reported, never handled."""

    status = "INTERNAL"


class Malformed(Invalid):
    """A request's bytes are not its message. INTERNAL, as grpcio answers."""

    status = "INTERNAL"


class NotThere(Invalid):
    """What was asked for by name does not exist."""

    status = "NOT_FOUND"


class BadKey(Invalid):
    """A call's key is missing, empty, or contradicted by its metadata."""


class BadConfig(Invalid):
    """The configuration breaks its own rules; all of them are listed."""

    def __init__(self, source: str, faults: Sequence[str]) -> None:
        super().__init__("\n".join([f"{source}: {len(faults)} fault(s)", *(f"  {f}" for f in faults)]))
        self.source = source
        self.faults = tuple(faults)


class BadService(Invalid):
    """A service cannot be run as it is: not found, no key, or of a kind that is not supported."""


class PortTaken(Invalid):
    """An address that the configuration names is in use by another process."""

    def __init__(self, address: str, holder: str) -> None:
        super().__init__(f"{address} is taken by {holder}")
        self.address = address


class NoShards(Transient):
    """There is no shard to own anything."""


class NotHome(Transient):
    """A call was forwarded and still is not home: two shards hold different epochs."""

    def __init__(self, *, epoch: int) -> None:
        super().__init__(f"not the owner by the placement of epoch {epoch}, and the call has hopped once already")
        self.epoch = epoch


class Draining(Transient):
    """The shard takes no new call any more."""


class Refused(Transient):
    """There is too much to do just now: not begun, and worth another try after `pushback_s`."""

    status = "RESOURCE_EXHAUSTED"
    reason = ""
    """In one word, for the statistics."""
    pushback_s = 0.1


class Overloaded(Refused):
    """A bounded queue is full."""

    reason = "full"

    def __init__(self, queue: str, *, waiting: int) -> None:
        super().__init__(f"{queue} is full: {waiting} waiting already")
        self.waiting = waiting


class RunsLate(Refused):
    """What has come already takes the lane too long."""

    reason = "late"

    def __init__(self, shard: str, *, late_s: float) -> None:
        super().__init__(f"shard {shard} runs {late_s * 1000:.0f} ms late")


class TooOften(Refused):
    """One key asks more often than it may."""

    reason = "rate"

    def __init__(self, *, per_s: float, wait_s: float) -> None:
        super().__init__(f"this key asks more often than {per_s:g} times a second")
        self.pushback_s = wait_s


class DeadlinePassed(Transient):
    """The answer would come too late to be of use."""

    status = "DEADLINE_EXCEEDED"


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error of a task group to report: the first `OnelaneError`, else the first of all."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending += error.exceptions
        else:
            leaves.append(error)
    return next((error for error in leaves if isinstance(error, OnelaneError)), leaves[0])
