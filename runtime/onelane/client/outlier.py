"""Outlier detection: an endpoint that fails on and on is left alone for a while, and asked again.

Pure: time and outcomes are handed in. Source: gRFC A50.
"""

from collections import deque

FAILURES = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL"})
"""What speaks against an endpoint, and not against the call."""


CONSECUTIVE = 5
"""Failures in a row that eject an endpoint."""


WINDOW = 50
"""Calls, the newest, whose share of failures ejects it as well."""


SHARE = 0.5


FIRST_EJECTION_S = 1.0


LONGEST_EJECTION_S = 30.0


class Endpoint:
    """What is known of one endpoint's health. Owned by its channel."""

    __slots__ = ("_failures", "_in_a_row", "_probing", "_recent", "_times", "_until")

    def __init__(self) -> None:
        self._in_a_row = 0
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        """Whether each of the newest calls failed."""
        self._failures = 0
        self._until: float | None = None
        """Ejected until then; None: not."""
        self._times = 0
        """Ejections without a success between."""
        self._probing = False

    @property
    def is_ejected(self) -> bool:
        return self._until is not None

    def allows(self, now: float) -> bool:
        """Whether a call may go there. After an ejection one call is a probe, and decides for the others."""
        if self._until is None:
            return True
        if now < self._until or self._probing:
            return False
        self._probing = True
        return True

    def ended(self, code: str, now: float) -> bool:
        """A call there has ended; whether that ejects the endpoint."""
        failed = code in FAILURES
        if not failed and self._until is None and not self._failures:
            # The path of nearly every call.
            return False
        return self._failed(now) if failed else self._succeeded()

    def _succeeded(self) -> bool:
        self._in_a_row = 0
        if self._probing or self._until is None:
            if self._until is not None:
                self._until, self._probing, self._times = None, False, 0
                self._forget()
            else:
                self._remember(failed=False)
        return False

    def _failed(self, now: float) -> bool:
        if self._until is not None and not self._probing:
            # One that was sent before the ejection.
            return False
        self._in_a_row += 1
        self._remember(failed=True)
        full = len(self._recent) == WINDOW and self._failures >= WINDOW * SHARE
        if not (self._probing or self._in_a_row >= CONSECUTIVE or full):
            return False
        self._times += 1
        self._until = now + min(LONGEST_EJECTION_S, FIRST_EJECTION_S * 2.0 ** (self._times - 1))
        self._probing = False
        self._forget()
        return True

    def _remember(self, *, failed: bool) -> None:
        if len(self._recent) == WINDOW:
            self._failures -= self._recent[0]
        self._recent.append(failed)
        self._failures += failed

    def _forget(self) -> None:
        self._recent.clear()
        self._failures = self._in_a_row = 0
