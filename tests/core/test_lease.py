"""The lease of a machine, step by step; test_lease_explored.py has every order of steps."""

from math import inf

import pytest
from onelane.core.lease import Fence, FencedTime, LeaseTerms, MachineLease, gone_at

TERMS = LeaseTerms(5.0)
LEASE = MachineLease.granted(TERMS, 7, sent_at=100.0, ttl_s=5.0)


def test_a_life_may_serve_from_before_the_request_was_sent_and_less_by_the_margin() -> None:
    assert LEASE.serve_until == 104.0
    assert LEASE.renewed(101.5, 5.0).serve_until == 105.5


@pytest.mark.parametrize(("ttl_s", "until"), [(60.0, 104.0), (4.0, 103.0), (1.0, 100.0)])
def test_a_store_that_grants_more_gives_no_more_and_one_that_grants_less_is_believed(
    ttl_s: float, until: float
) -> None:
    assert MachineLease.granted(TERMS, 7, sent_at=100.0, ttl_s=ttl_s).serve_until == until


def test_a_lease_is_renewed_three_times_in_its_time_and_sooner_while_that_fails() -> None:
    assert LEASE.renew_at == pytest.approx(100 + 5 / 3)
    sent = LEASE.renewal_sent(102.0)
    assert sent.renew_at == pytest.approx(102 + 5 / 12)
    assert sent.renewed(102.0, 5.0).renew_at == pytest.approx(102 + 5 / 3)


def test_a_renewal_that_is_answered_late_takes_nothing_back() -> None:
    newer = LEASE.renewed(103.0, 5.0)
    assert newer.renewed(101.0, 5.0) == newer


def test_a_lease_that_the_store_does_not_know_is_lost_for_good() -> None:
    lost = LEASE.renewed(101.0, 0.0)
    assert lost.is_lost
    assert lost.renewed(102.0, 5.0) == lost


def test_a_machine_that_loses_its_connections_has_new_ones_before_its_lives_are_fenced() -> None:
    """Where the store is as far away as it may be: the renewal that is due is lost, and the next one has three ways
    there and back."""
    next_renewal = TERMS.renew_every_s + TERMS.retry_s
    assert next_renewal + 3 * TERMS.far_s < TERMS.lease_s - TERMS.margin_s
    assert 3 * TERMS.far_s < TERMS.renewal_s
    assert TERMS.far_s < TERMS.request_s


@pytest.mark.parametrize(
    ("answers_in_s", "expected"),
    [
        (None, ""),
        (0.0, ""),
        (0.62, ""),
        (0.63, "etcd answers in 0.63 s; lease_s = 5 needs under 0.62 s: set lease_s to 6 at least"),
        (3.0, "etcd answers in 3 s; lease_s = 5 needs under 0.62 s: set lease_s to 24 at least"),
    ],
)
def test_a_store_that_is_too_far_away_is_told_with_the_lease_that_it_needs(
    answers_in_s: float | None, expected: str
) -> None:
    fault = LeaseTerms(5).distance_fault(answers_in_s)
    assert fault.partition(",")[0] == expected


def test_a_life_is_fenced_at_its_time_and_goes_on_when_its_lease_is_renewed() -> None:
    fence = Fence(7, until=104.0)
    assert fence.may_serve(103.99)
    assert not fence.may_serve(104.0)
    assert fence.extended(7, 105.0).may_serve(104.5)
    assert fence.extended(7, 103.0) == fence


def test_a_life_is_not_extended_by_the_next_lease_of_its_machine() -> None:
    assert not Fence(7, until=104.0).extended(8, 200.0).may_serve(150.0)


def test_a_machine_whose_lease_ran_out_is_gone_at_once_and_a_forgotten_one_after_its_lease() -> None:
    assert gone_at(50.0, lease_s=5.0, was_forgotten=False) == 50.0
    assert gone_at(50.0, lease_s=5.0, was_forgotten=True) == 55.0


def test_fenced_time_is_added_up_to_the_moment() -> None:
    fenced = FencedTime(0.0, open_until=100.0)
    assert fenced.total_s(101.0) == 1.0, "it has not joined yet"
    joined = fenced.moved(102.0, serve_until=106.0)
    assert [joined.total_s(at) for at in (102.0, 106.0, 106.5)] == [2.0, 2.0, 2.5]
    assert joined.moved(105.0, serve_until=109.0).total_s(109.0) == 2.0
    assert joined.moved(107.0, serve_until=111.0).total_s(111.0) == 3.0, "renewed late"
    assert joined.moved(103.0, serve_until=-inf).total_s(104.0) == 3.0, "lost"
    assert joined.moved(107.0, serve_until=106.0).total_s(108.0) == 4.0, "told again, and nothing new"
