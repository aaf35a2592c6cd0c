"""The members of one etcd: which of them is asked next, and what their clocks say together. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from email.utils import parsedate_to_datetime

CLOCKS_APART_S = 30.0
"""How far apart two wall clocks may be: half of what an assertion of identity lasts, which one machine writes and
another one reads. Reminders, and for how long answers are remembered, go by them too."""


def next_member(order: Sequence[str], unanswered: Iterable[tuple[str, float]], *, now: float, late_s: float) -> str:
    """The first of `order` that has answered all that it was asked up to `late_s` ago; the first of all where none has.

    unanswered: the member of each request that is under way, and when that was sent.
    """
    late = {member for member, sent_at in unanswered if now - sent_at >= late_s}
    return next((member for member in order if member not in late), order[0])


def ahead_of_date_s(date: str, now: float) -> float | None:
    """How far `now` is ahead of a date of HTTP, which has whole seconds. None: it is no date."""
    try:
        return float(round(now - parsedate_to_datetime(date).timestamp()))
    except ValueError:
        return None


def agreed_ahead_s(members: Sequence[float | None]) -> float | None:
    """How far a clock is ahead of the members' that agree with each other, by the middle one of these.

    members: how far it is ahead of each one's; None for one that has not answered. None where no group within
    `CLOCKS_APART_S` is most of those that have answered, and half of all at least: a clock that is wrong is then not to
    be told from those that are right.
    """
    answered = sorted(ahead_s for ahead_s in members if ahead_s is not None)
    groups = [[other for other in answered if 0 <= other - first <= CLOCKS_APART_S] for first in answered]
    largest = max(groups, key=len, default=[])
    if 2 * len(largest) <= len(answered) or 2 * len(largest) < len(members):
        return None
    return largest[len(largest) // 2]


def apart_members(ahead: Mapping[str, float | None]) -> tuple[str, ...]:
    """The members whose clocks are far from that of most; all that have answered where there is no most.

    ahead: member → how far one clock is ahead of the member's.
    """
    answered = {member: ahead_s for member, ahead_s in ahead.items() if ahead_s is not None}
    agreed_s = agreed_ahead_s([*answered.values()])
    return tuple(
        sorted(
            member
            for member, ahead_s in answered.items()
            if agreed_s is None or abs(ahead_s - agreed_s) > CLOCKS_APART_S
        )
    )
