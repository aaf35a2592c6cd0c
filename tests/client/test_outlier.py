"""An endpoint that keeps failing is ejected for a while, and one probe decides whether it comes back."""

from hypothesis import given
from hypothesis import strategies as st
from onelane.client.outlier import CONSECUTIVE_FAILURES, MAX_EJECTION_S, RECENT_CALLS, EndpointHealth


def test_failures_in_a_row_eject_an_endpoint_and_one_probe_decides() -> None:
    endpoint, now = EndpointHealth(), 100.0
    ejects = [endpoint.ended("UNAVAILABLE", now) for _ in range(CONSECUTIVE_FAILURES)]
    assert ejects == [False] * (CONSECUTIVE_FAILURES - 1) + [True]
    assert not endpoint.allows(now + 0.99)
    assert endpoint.allows(now + 1.0)
    assert not endpoint.allows(now + 1.0), "one probe at a time"
    assert endpoint.ended("UNAVAILABLE", now + 1.1)
    assert not endpoint.allows(now + 3.0)
    assert endpoint.allows(now + 3.2)
    assert not endpoint.ended("OK", now + 3.3)
    assert [endpoint.allows(now + 3.4) for _ in range(3)] == [True] * 3


def test_a_probe_that_says_nothing_of_its_endpoint_makes_room_for_another_and_ends_no_ejection() -> None:
    endpoint = EndpointHealth()
    for _ in range(CONSECUTIVE_FAILURES):
        endpoint.ended("UNAVAILABLE", 100.0)
    assert endpoint.allows(101.0)
    endpoint.abandoned()
    assert endpoint.is_ejected
    assert endpoint.allows(101.0)
    assert not endpoint.allows(101.0)


def test_a_share_of_failures_ejects_as_well_and_statuses_of_the_call_itself_do_not() -> None:
    endpoint = EndpointHealth()
    assert not any(endpoint.ended("NOT_FOUND", 1.0) for _ in range(RECENT_CALLS * 2))
    ejected = [endpoint.ended("DEADLINE_EXCEEDED" if number % 2 else "OK", 1.0) for number in range(RECENT_CALLS + 4)]
    assert ejected.count(True) == 1


@given(
    st.lists(
        st.tuples(st.sampled_from(["OK", "UNAVAILABLE", "NOT_FOUND", "abandoned", "never ends"]), st.floats(0, 40)),
        max_size=120,
    )
)
def test_an_ejected_endpoint_is_always_asked_again(steps: list[tuple[str, float]]) -> None:
    endpoint, now = EndpointHealth(), 0.0
    for outcome, pause in steps:
        now += pause
        if not endpoint.allows(now) or outcome == "never ends":
            continue
        if outcome == "abandoned":
            endpoint.abandoned()
        else:
            endpoint.ended(outcome, now)
    assert endpoint.allows(now + MAX_EJECTION_S) or not endpoint.is_ejected


def test_an_endpoint_that_fails_for_days_is_probed_every_half_minute() -> None:
    endpoint, now = EndpointHealth(), 0.0
    for _ in range(CONSECUTIVE_FAILURES):
        endpoint.ended("UNAVAILABLE", now)
    for _ in range(2000):
        now += MAX_EJECTION_S
        assert endpoint.allows(now)
        assert endpoint.ended("UNAVAILABLE", now)
    assert not endpoint.allows(now + MAX_EJECTION_S - 0.1)
