"""A machine, its lives, the store of leases and a coordinator in every order of events, with time as one of them.

ONELANE_CHAOS=1 explores finer clocks and more events at once, for some minutes.
"""

import os
import sys
from dataclasses import replace

import pytest

from tests.core import lease_faults as faults
from tests.core.lease_explorer import explore_leases
from tests.core.lease_world import Drift, LeaseViolated, Rates

EXACT = Rates(200, 200, 200)
SLOW = Rates(machine=180, store=220, coordinator=220)
"""The machine counts too little, and the others too much: its fence closes as late as it can."""
FAST = Rates(machine=220, store=180, coordinator=180)
FINE = Rates(machine=45, store=55, coordinator=55)
"""Twenty looks at the clock in a lease, and not five."""
PLAIN = Drift(SLOW)
USUAL = {
    "slow": PLAIN,
    "exact": replace(PLAIN, rates=EXACT),
    "fast": replace(PLAIN, rates=FAST),
    "processes are stopped": replace(PLAIN, pauses=True),
    "the store is down at times": replace(PLAIN, outages=True),
    "an operator forgets the machine": replace(PLAIN, forgets=1),
    "the machine comes back": replace(PLAIN, joins=1),
}
LONG = {
    "two renewals at once": replace(PLAIN, in_flight=2, unread=2),
    "fine": replace(PLAIN, rates=FINE),
    "fine, and processes are stopped": replace(PLAIN, rates=FINE, pauses=True),
    "stopped, down, forgotten": replace(PLAIN, pauses=True, outages=True, forgets=1),
    "fast; stopped, down, forgotten": replace(PLAIN, rates=FAST, pauses=True, outages=True, forgets=1),
    "the machine comes back, and the store is down at times": replace(PLAIN, joins=1, outages=True),
    "the machine comes back, and processes are stopped": replace(PLAIN, joins=1, pauses=True),
}
CHAOS = "ONELANE_CHAOS" in os.environ
EXPLORED = USUAL | LONG if CHAOS else USUAL


@pytest.mark.timeout(1200 if CHAOS else 60)
@pytest.mark.parametrize("name", EXPLORED)
def test_every_property_of_a_lease_holds_in_every_state(name: str) -> None:
    states = explore_leases(EXPLORED[name])
    sys.stdout.write(f"{name}: {states} states\n")
    assert states > 500


FAULTS: dict[str, tuple[str, Drift]] = {
    "counts from the answer": ("one life serves a key", replace(PLAIN, lease=faults.CountsFromTheAnswer)),
    "no margin": ("one life serves a key", replace(PLAIN, lease=faults.HasNoMargin)),
    "half the margin": ("one life serves a key", replace(PLAIN, rates=FINE, lease=faults.HasHalfTheMargin)),
    "forgets a later renewal": (
        "an answered renewal counts",
        replace(PLAIN, in_flight=2, lease=faults.ForgetsALaterRenewal),
    ),
    "stops until it is answered": ("an answered renewal counts", replace(PLAIN, lease=faults.StopsUntilItIsAnswered)),
    "tries once": ("there is a way on", replace(PLAIN, lease=faults.TriesOnce)),
    "never loses it": ("there is a way on", replace(PLAIN, joins=1, lease=faults.NeverLosesIt)),
    "a life takes the lease of others": (
        "one life serves a key",
        replace(PLAIN, joins=1, fence=faults.TakesTheLeaseOfOthers),
    ),
    "a life is never extended": ("there is a way on", replace(PLAIN, fence=faults.IsNeverExtended)),
    "a fence never closes": ("one life serves a key", replace(PLAIN, fence=faults.NeverCloses)),
    "fenced lives are ended": ("memory is kept", replace(PLAIN, ends_lives_early=True)),
    "no look at the clock before the answer": (
        "no answer after the next owner",
        replace(PLAIN, is_checked_before_the_answer=False),
    ),
    "a machine is given up for its silence": ("one life serves a key", replace(PLAIN, waits_for_expiry=False)),
    "a forgotten machine is dead at once": (
        "one life serves a key",
        replace(PLAIN, forgets=1, gone_at=lambda seen_at, **_: seen_at),
    ),
    "a clock that stands while the machine sleeps": (
        "one life serves a key",
        replace(PLAIN, rates=Rates(machine=100, store=200, coordinator=200)),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_a_lease_is_found(name: str) -> None:
    expected, drift = FAULTS[name]
    with pytest.raises(LeaseViolated) as violated:
        explore_leases(drift)
    assert violated.value.name == expected
    (way,) = violated.value.__notes__
    assert way
