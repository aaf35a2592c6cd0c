"""Every state of a call under every event: what follows, or that it cannot be."""

from itertools import product

import pytest
from onelane.server.call_state import (
    ARRIVED,
    DONE,
    EVENTS,
    FORWARDED,
    RUNNING,
    WAITING,
    CallState,
    step,
)

EXPECTED = {
    (ARRIVED, "begin"): RUNNING,
    (ARRIVED, "wait"): WAITING,
    (ARRIVED, "forward"): FORWARDED,
    (ARRIVED, "end"): DONE,
    (WAITING, "begin"): RUNNING,
    (WAITING, "wait"): WAITING,
    (WAITING, "forward"): FORWARDED,
    (WAITING, "end"): DONE,
    (RUNNING, "end"): DONE,
    (FORWARDED, "end"): DONE,
}


@pytest.mark.parametrize(("state", "event"), list(product(CallState, EVENTS)), ids=str)
def test_every_event_leads_where_the_table_says_or_is_refused(state: CallState, event: str) -> None:
    if (following := EXPECTED.get((state, event))) is not None:
        assert step(state, event) is following
        return
    with pytest.raises(RuntimeError, match=f"^a call that is {state.value} cannot {event}$"):
        step(state, event)


@pytest.mark.parametrize("state", CallState)
def test_every_state_but_done_leads_to_done_by_one_event(state: CallState) -> None:
    assert (state is DONE) or (step(state, "end") is DONE)
