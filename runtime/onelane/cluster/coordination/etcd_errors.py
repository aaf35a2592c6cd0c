"""What etcd says when it does not do what it was asked, as errors of the seam. Pure."""

from onelane.cluster.coordination import CoordinationRefused, CoordinationUnavailable, LeaseEnded
from onelane.wire.statuses import PERMISSION_DENIED, UNAUTHENTICATED, UNIMPLEMENTED

NOT_FOUND = 5
REFUSALS = {3, NOT_FOUND, PERMISSION_DENIED, 9, 11, UNIMPLEMENTED, UNAUTHENTICATED}
"""gRPC codes of requests that will fail again: a wrong password is INVALID_ARGUMENT (3)."""
OLD_TOKENS = ("invalid auth token", "revision of auth store is old")
NO_LEADER = "etcdserver: no leader"
HINTS = {
    "invalid user ID or password": "expected a user of this etcd, and its password",
    "user name is empty": "this etcd has users: expected one, and its password",
    "authentication is not enabled": "this etcd has no users: expected none",
    "permission denied": "expected a user that may read and write these keys",
}
"""What etcd says → what it takes."""


class QuietWatch(Exception):
    """A watch was silent for so long that its connection may be dead."""


class NoLeader(CoordinationUnavailable):
    """A member has no leader, as it is cut off from the others; it has carried out nothing."""


class OldToken(CoordinationRefused):
    """The store has forgotten who we are."""


def error_said(member: str, code: int, words: str) -> Exception:
    """For an answer of a member that is an error: its gRPC code, and what it says."""
    hint = next((f" ({hint})" for sign, hint in HINTS.items() if sign in words), "")
    text = f"etcd at {member}: {words}{hint}"
    if any(sign in words for sign in OLD_TOKENS):
        return OldToken(text)
    if code == NOT_FOUND and "lease" in words:
        return LeaseEnded(text)
    if code in REFUSALS:
        return CoordinationRefused(text)
    return NoLeader(text) if NO_LEADER in words else CoordinationUnavailable(text)
