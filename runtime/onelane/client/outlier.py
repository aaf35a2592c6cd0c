"""Outlier detection: an endpoint whose calls keep failing is ejected for a while, then probed by one call.

Pure: time and outcomes are handed in. Source: gRFC A50.
"""

from collections import deque

from onelane.core.backoff import exponential_s

FAILURES = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL"})
"""Statuses that count against an endpoint; others are the call's own."""
CONSECUTIVE_FAILURES = 5
"""Failures in a row that eject an endpoint."""
RECENT_CALLS = 50
"""The newest calls, whose share of failures ejects it as well."""
FAILURE_SHARE = 0.5
PROBE_S = 10.0
"""A probe whose outcome has not come for so long is followed by another: its call may be a stream that never ends."""
FIRST_EJECTION_S = 1.0
MAX_EJECTION_S = 30.0


class EndpointHealth:
    """The health of one endpoint, by the outcomes of its calls. Owned by its channel."""

    __slots__ = ("_ejected_until", "_ejections", "_failures", "_failures_in_a_row", "_probe_until", "_recent")

    def __init__(self) -> None:
        self._failures_in_a_row = 0
        self._recent: deque[bool] = deque(maxlen=RECENT_CALLS)
        """Whether each of the newest calls failed."""
        self._failures = 0
        """How many of these did."""
        self._ejected_until: float | None = None
        """None: not ejected."""
        self._ejections = 0
        """Since the last probe that succeeded."""
        self._probe_until: float | None = None
        """Until then the outcome of a probe is waited for; None: none is under way."""

    @property
    def is_ejected(self) -> bool:
        return self._ejected_until is not None

    def allows(self, now: float) -> bool:
        """Whether a call may go there. The first call after an ejection is a probe; others wait for its outcome.

        After True the call's outcome is handed in, by `ended` or `abandoned`.
        """
        if self._ejected_until is None:
            return True
        if now < self._ejected_until or (self._probe_until is not None and now < self._probe_until):
            return False
        self._probe_until = now + PROBE_S
        return True

    def abandoned(self) -> None:
        """A call that was to go there has ended, and its end says nothing of the endpoint: another may be the probe."""
        self._probe_until = None

    def ended(self, code: str, now: float) -> bool:
        """A call there has ended with a status; whether that ejects the endpoint."""
        failed = code in FAILURES
        if not failed and self._ejected_until is None and not self._failures:
            # The path of nearly every call.
            return False
        return self._failed(now) if failed else self._succeeded()

    def _succeeded(self) -> bool:
        self._failures_in_a_row = 0
        if self._probe_until is not None:
            self._ejected_until, self._probe_until, self._ejections = None, None, 0
            self._forget_calls()
        elif self._ejected_until is None:
            self._remember(failed=False)
        return False

    def _failed(self, now: float) -> bool:
        is_probing = self._probe_until is not None
        if self._ejected_until is not None and not is_probing:
            # Sent before the ejection.
            return False
        self._failures_in_a_row += 1
        self._remember(failed=True)
        too_many = len(self._recent) == RECENT_CALLS and self._failures >= RECENT_CALLS * FAILURE_SHARE
        if not (is_probing or self._failures_in_a_row >= CONSECUTIVE_FAILURES or too_many):
            return False
        self._ejected_until = now + exponential_s(self._ejections, base_s=FIRST_EJECTION_S, cap_s=MAX_EJECTION_S)
        self._ejections += 1
        self._probe_until = None
        self._forget_calls()
        return True

    def _remember(self, *, failed: bool) -> None:
        if len(self._recent) == RECENT_CALLS:
            self._failures -= self._recent[0]
        self._recent.append(failed)
        self._failures += failed

    def _forget_calls(self) -> None:
        self._recent.clear()
        self._failures = self._failures_in_a_row = 0
