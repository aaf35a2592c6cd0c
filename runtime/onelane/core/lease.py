"""Until when a machine's lives may serve keys: the lease that its supervisor renews, and the fence of each life. Pure.

    supervisor   HELD ──renewed──▶ HELD, and `serve_until` moves on
                   └───lost──▶ LOST: its lives end; the machine joins again with another lease and new lives
    life         SERVES ──the clock passes `until`──▶ FENCED ──extended by its own lease──▶ SERVES

The store of the leases (etcd) gives a lease up `lease_s` after it got the last renewal, and never earlier by its own
clock. A life stops earlier by itself: its time counts from before that renewal was *sent*, and is shorter by
`margin_s`. So whoever learns that a lease was given up knows that its lives serve nothing, whatever was lost, late or
paused between. The margin pays for two clocks that each run wrong by a tenth: 0.8 / 0.9 of a lease ends before 1 / 1.1
of it.

Promises: `serve_until` never moves back; renewals that fail, come late or in another order cost nothing that an earlier
one has won; a lease that is lost is not renewed again; a life is extended by the lease that it was started under, and
by no other one of its machine. A life that is fenced keeps its memory: only a lost lease ends it.

Times are seconds of CLOCK_BOOTTIME (`time.clock_gettime`): all processes of a machine read the same one, it goes on
while the machine sleeps, and nobody sets it. Leaves out: a virtual machine whose clocks all stand while it is paused.
Nothing that looks at a clock can see that; the claim of a durable key, in its database, holds even then.
"""

import math
from dataclasses import dataclass, replace

MARGIN = 5
"""The part of a lease by which a life stops early."""
RENEWALS = 3
"""Renewals in the time of one lease."""
RETRIES = 4
"""Renewals that are sent in the time of one, as long as they are not answered; each is waited for beside the others."""
REQUESTS = 6
"""How often a request goes into a lease at least that is waited for."""
CONNECTED_ANEW = 8
"""How often an answer goes into a lease at least, so that one machine can lose its connections and keep its lease: a
renewal that is due after a third, and repeated after a twelfth, has a new connection by TLS in three times of an
answer, which is over before its lives are fenced: 1/3 + 1/12 + 3/8 of a lease, and 4/5."""


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """The setting `lease_s`, and what follows from it."""

    lease_s: float

    @property
    def renew_every_s(self) -> float:
        return self.lease_s / RENEWALS

    @property
    def retry_s(self) -> float:
        """From a renewal that was sent to the next one, where it has failed or was not answered."""
        return self.renew_every_s / RETRIES

    @property
    def request_s(self) -> float:
        """The longest that a request other than a renewal is waited for."""
        return self.lease_s / REQUESTS

    @property
    def renewal_s(self) -> float:
        """The longest that a renewal is waited for, so that half a lease is left, and it is repeated meanwhile."""
        return self.lease_s / 2

    @property
    def far_s(self) -> float:
        """The store answers sooner, or a machine that loses its connections to it may be given up."""
        return self.lease_s / CONNECTED_ANEW

    def distance_fault(self, answers_in_s: float | None) -> str:
        """What is wrong where the store takes so long to answer; "" where nothing is, or nobody knows."""
        if answers_in_s is None or answers_in_s < self.far_s:
            return ""
        least_s = math.ceil(answers_in_s * CONNECTED_ANEW)
        return (
            f"etcd answers in {answers_in_s:.2g} s; lease_s = {self.lease_s:g} needs under {self.far_s:.2g} s: set "
            f"lease_s to {least_s} at least, or move the machine nearer to etcd"
        )

    @property
    def margin_s(self) -> float:
        return self.lease_s / MARGIN

    def serve_until(self, sent_at: float, ttl_s: float) -> float:
        """What a renewal that was sent at `sent_at` allows, where the store has answered with `ttl_s`.

        A store may grant more than was asked for (etcd has a least time); that is not used.
        """
        return sent_at + min(ttl_s, self.lease_s) - self.margin_s


@dataclass(frozen=True, slots=True)
class MachineLease:
    """The lease of a machine as its supervisor sees it. Each event is a method that returns the next value."""

    terms: LeaseTerms
    lease_id: int
    """Given by the store: another one for each time that the machine joins."""
    serve_until: float
    """For the fence of each life that was started under this lease."""
    renew_at: float
    """When the next renewal is due."""
    is_lost: bool = False
    """The store has given the lease up, for good."""

    @classmethod
    def granted(cls, terms: LeaseTerms, lease_id: int, sent_at: float, ttl_s: float) -> "MachineLease":
        """sent_at: the time before the request was sent. ttl_s: by the store's answer."""
        return cls(terms, lease_id, terms.serve_until(sent_at, ttl_s), sent_at + terms.renew_every_s)

    def renewal_sent(self, now: float) -> "MachineLease":
        """A renewal is about to be sent. Until it is answered, the next one is due soon."""
        return replace(self, renew_at=now + self.terms.retry_s)

    def renewed(self, sent_at: float, ttl_s: float) -> "MachineLease":
        """The store has answered the renewal that was sent at `sent_at`; `ttl_s` of 0: there is no such lease."""
        if ttl_s <= 0:
            return self.lost()
        if self.is_lost:
            return self
        until = max(self.serve_until, self.terms.serve_until(sent_at, ttl_s))
        return replace(self, serve_until=until, renew_at=max(self.renew_at, sent_at + self.terms.renew_every_s))

    def lost(self) -> "MachineLease":
        """The store says that the lease, or what the machine has put under it, is not there any more."""
        return replace(self, is_lost=True)


@dataclass(frozen=True, slots=True)
class Fence:
    """What one life knows of the lease of its machine."""

    lease_id: int
    """The lease under which the life was started."""
    until: float

    def extended(self, lease_id: int, until: float) -> "Fence":
        """The supervisor has told what its lease allows now."""
        if lease_id != self.lease_id or until <= self.until:
            return self
        return replace(self, until=until)

    def may_serve(self, now: float) -> bool:
        """Whether a turn may begin, and an answer leave, at `now`: asked for each, right before."""
        return now < self.until


@dataclass(frozen=True, slots=True)
class FencedTime:
    """For how long a machine has served no key for want of a lease: to the moment, however seldom anybody asks."""

    before_s: float
    """Of the times that its fence was closed before."""
    open_until: float
    """From then on it is closed again."""

    def moved(self, now: float, serve_until: float) -> "FencedTime":
        """What the machine may do has changed at `now`: it may serve until then, or may not where that has passed."""
        return FencedTime(self.total_s(now), max(now, serve_until))

    def total_s(self, now: float) -> float:
        """Since its start."""
        return self.before_s + max(0.0, now - self.open_until)


def gone_at(seen_at: float, *, lease_s: float, was_forgotten: bool) -> float:
    """When a coordinator that saw at `seen_at` that a machine's lease has ended may count its lives as dead.

    At once where the lease ran out. Where an operator had it revoked before, its lives may go on until their fences
    close, which is within `lease_s`: the setting in the machine's own record.
    """
    return seen_at + lease_s if was_forgotten else seen_at
