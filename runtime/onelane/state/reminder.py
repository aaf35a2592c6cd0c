"""A reminder: a call of a key that is to come, as data. Pure.

Promises: its due times are the first one + n · `every_s`, so it does not drift; periods that have passed are one run. A
failed run is repeated after a back-off that is kept with it, over restarts and moves, until the next period or the
limit of its runs. Each due time has an idempotency key of its own, which its repeated runs share.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from onelane.core.backoff import exponential_s
from onelane.errors import UnreadableReminder
from onelane.state.store import StoredReminder

FIRST_RETRY_S, MAX_RETRY_S = 1.0, 3600.0
"""Back-off after a failed run."""
NONCE_BYTES = 8


@dataclass(frozen=True, slots=True)
class Reminder:
    """A call that is to come. See `Shard.remind`."""

    key: str
    """Canonical text."""
    id: str
    method: str
    """`pkg.Service/Method`."""
    request: bytes
    """The message, serialized."""
    due_at: float
    """Unix time; with `every_s`, of the next run."""
    every_s: float | None = None
    """Seconds from one due time to the next; None where it is due once."""
    nonce: bytes = b""
    """Random, so that no client knows the idempotency key of a run in advance."""
    failures: int = 0
    """Runs that have failed since it was due."""
    retry_at: float = 0.0
    """When it runs again after a failed run, in Unix time."""

    @property
    def run_at(self) -> float:
        """When it is to run, in Unix time."""
        return max(self.due_at, self.retry_at)

    @property
    def idempotency_key(self) -> str:
        """Of all runs for this due time."""
        digest = blake2b(f"{self.id}\0{self.due_at!r}\0".encode() + self.nonce, digest_size=16)
        return f"reminder-{digest.hexdigest()}"

    def stored(self) -> StoredReminder:
        """As a store keeps it."""
        encode, _ = _codec()
        values = (self.method, self.request, self.due_at, self.every_s, self.nonce, self.failures, self.retry_at)
        return StoredReminder(self.id, self.run_at, encode(values))


def read_reminder(key: str, stored: StoredReminder) -> Reminder:
    """Read a reminder of `key` as a store has it.

    Raises:
        UnreadableReminder: damaged, or written by a newer release.
    """
    _, decode = _codec()
    try:
        method, request, due_at, every_s, nonce, failures, retry_at = decode(stored.data)
    except (ValueError, TypeError) as error:
        raise UnreadableReminder(key, stored.id) from error
    return Reminder(key, stored.id, method, request, due_at, every_s, nonce, failures, retry_at)


def after_success(reminder: Reminder, now: float) -> tuple[Reminder | None, int]:
    """The reminder after a run, None where it is over; and how many of its due times have passed without a run of
    their own. now: Unix time."""
    if reminder.every_s is None:
        return None, 0
    periods = max(1, math.floor((now - reminder.due_at) / reminder.every_s) + 1)
    due_at = reminder.due_at + periods * reminder.every_s
    return replace(reminder, due_at=due_at, failures=0, retry_at=0.0), periods - 1


def after_failure(reminder: Reminder, now: float, *, max_runs: int) -> tuple[Reminder | None, bool]:
    """The reminder after a failed run, None where it is over; and whether this due time is given up. now: Unix time."""
    failures = reminder.failures + 1
    retry_at = now + exponential_s(failures - 1, base_s=FIRST_RETRY_S, cap_s=MAX_RETRY_S)
    following, _ = after_success(reminder, now)
    if failures >= max_runs or (following is not None and following.due_at <= retry_at):
        return following, True
    return replace(reminder, failures=failures, retry_at=retry_at), False


def _codec() -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    # An app without reminders does not load it.
    from msgspec import msgpack

    return msgpack.encode, msgpack.decode
