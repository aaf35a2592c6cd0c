"""The audit log: one line for each call that is refused for who its client is, and at most LINES_PER_S a second.

Lines beyond that are left out, and a line says how many; a flood of refused calls costs the log no more than that.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

from onelane.server.call import Call

log = logging.getLogger("onelane.audit")
LINES_PER_S = 10
TELL_S = 1.0
"""After the first line that was left out, their number is told at the latest."""
MAX_FIELD = 200
"""Characters of each field; a subject may be of any length."""


class Audit:
    """See the module. Owned by one lane."""

    def __init__(self, shard: str, *, now: Callable[[], float] = monotonic) -> None:
        self._shard = shard
        self._now = now
        self._window_began = now()
        self._lines = 0
        self.left_out = 0
        """Lines that were left out and that no line has told yet."""

    def refused(self, call: Call, *, status: str, reason: str, cause: str) -> None:
        """A call has been refused. cause: what its client is not told."""
        now = self._now()
        if now - self._window_began >= 1.0:
            self._begin_window(now)
        if self._lines >= LINES_PER_S:
            self._leave_out()
            return
        self._lines += 1
        subject = call.identity.subject if call.identity is not None else ""
        client = (_plain(call.peer()), _plain(subject))
        # Whatever a handler of `logging` does, the call must end.
        with suppress(Exception):
            log.warning(
                "auth.refused shard=%s method=%s peer=%s subject=%s status=%s reason=%s cause=%s",
                *(self._shard, call.method[1:], *client, status, reason, _plain(cause, keep=" ")),
            )

    def _begin_window(self, now: float) -> None:
        self._window_began, self._lines = now, 0
        left_out, self.left_out = self.left_out, 0
        if left_out:
            with suppress(Exception):
                log.warning("auth.refusals_left_out shard=%s lines=%d", self._shard, left_out)

    def _leave_out(self) -> None:
        if not self.left_out:
            # Told also where no further call is refused.
            asyncio.get_running_loop().call_later(TELL_S, self._tell_left_out)
        self.left_out += 1

    def _tell_left_out(self) -> None:
        if self.left_out:
            self._begin_window(self._now())


def _plain(text: str, *, keep: str = "") -> str:
    """Text of a stranger's, without what could begin a field or a line of its own, or speak to a terminal."""
    shown = text if len(text) <= MAX_FIELD else f"{text[:MAX_FIELD]}…"
    plain = (c if (c.isprintable() and c != " ") or c in keep else f"\\x{ord(c):02x}" for c in shown)
    return "".join(plain) or "-"
