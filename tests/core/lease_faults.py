"""Faults for the exploration to find: each a small mistake in the lease of a machine, or in the fence of a life."""

from dataclasses import replace

from onelane.core.lease import Fence, MachineLease


class CountsFromTheAnswer(MachineLease):
    def renewed(self, sent_at: float, ttl_s: float) -> MachineLease:
        return super().renewed(0, ttl_s)


class HasNoMargin(MachineLease):
    def renewed(self, sent_at: float, ttl_s: float) -> MachineLease:
        renewed = super().renewed(sent_at, ttl_s)
        return replace(renewed, serve_until=renewed.serve_until + self.terms.margin_s) if ttl_s else renewed


class HasHalfTheMargin(MachineLease):
    def renewed(self, sent_at: float, ttl_s: float) -> MachineLease:
        renewed = super().renewed(sent_at, ttl_s)
        return replace(renewed, serve_until=renewed.serve_until + self.terms.margin_s / 2) if ttl_s else renewed


class ForgetsALaterRenewal(MachineLease):
    def renewed(self, sent_at: float, ttl_s: float) -> MachineLease:
        renewed = super().renewed(sent_at, ttl_s)
        return replace(renewed, serve_until=self.terms.serve_until(sent_at, ttl_s)) if ttl_s else renewed


class StopsUntilItIsAnswered(MachineLease):
    def renewal_sent(self, now: float) -> MachineLease:
        return replace(super().renewal_sent(now), serve_until=now)


class TriesOnce(MachineLease):
    def renewal_sent(self, now: float) -> MachineLease:
        return replace(self, renew_at=now + self.terms.lease_s)


class NeverLosesIt(MachineLease):
    def lost(self) -> MachineLease:
        return self


class TakesTheLeaseOfOthers(Fence):
    def extended(self, lease_id: int, until: float) -> Fence:
        return replace(self, until=max(until, self.until))


class IsNeverExtended(Fence):
    def extended(self, lease_id: int, until: float) -> Fence:
        return self


class NeverCloses(Fence):
    def may_serve(self, now: float) -> bool:
        return True
