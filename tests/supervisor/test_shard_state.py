"""A shard's states, searched whole: every event in every state."""

import pytest
from onelane.supervisor.shard_state import REPORTING, TRANSITIONS, ShardEvent, ShardState, is_possible, step

TABLE = """
                |BECAME_READY|DRAIN_ASKED|RESTART_ASKED   |DRAIN_DONE      |ENDED           |APP_STOPPED|LEAVE_ASKED
STARTING        |READY       |-          |-               |-               |STOPPED         |STOPPED    |LEAVING
READY           |-           |DRAINING   |RESTART_DRAINING|-               |RECOVERING      |STOPPED    |LEAVING
DRAINING        |-           |-          |-               |DRAINED         |RECOVERING      |STOPPED    |LEAVING
DRAINED         |-           |-          |RESTART_STOPPING|-               |RECOVERING      |STOPPED    |LEAVING
RESTART_DRAINING|-           |-          |-               |RESTART_STOPPING|RECOVERING      |STOPPED    |LEAVING
RESTART_STOPPING|-           |-          |-               |-               |RESTART_STARTING|STOPPED    |LEAVING
RESTART_STARTING|READY       |-          |-               |-               |RECOVERING      |STOPPED    |LEAVING
RECOVERING      |READY       |-          |-               |-               |RECOVERING      |STOPPED    |LEAVING
LEAVING         |LEAVING     |-          |-               |-               |STOPPED         |STOPPED    |-
STOPPED         |-           |-          |-               |-               |-               |-          |-
"""


def cells() -> list[tuple[ShardState, ShardEvent, ShardState | None]]:
    """Every state with every event, and the state that follows; None where the event is impossible."""
    header, *rows = ([cell.strip() for cell in line.split("|")] for line in TABLE.strip("\n").splitlines())
    return [
        (ShardState[row[0]], ShardEvent[event], None if target == "-" else ShardState[target])
        for row in rows
        for event, target in zip(header[1:], row[1:], strict=True)
    ]


def reachable(start: ShardState) -> set[ShardState]:
    states: set[ShardState] = set()
    frontier = [start]
    while frontier:
        unseen = set(TRANSITIONS[frontier.pop()].values()) - states
        states |= unseen
        frontier += unseen
    return states


@pytest.mark.parametrize(("state", "event", "target"), cells())
def test_every_event_in_every_state(state: ShardState, event: ShardEvent, target: ShardState | None) -> None:
    assert is_possible(state, event) == (target is not None)
    if target is not None:
        assert step(state, event) is target
        return
    with pytest.raises(RuntimeError, match=f"event {event.name} is not possible for a shard in state {state.name}"):
        step(state, event)


def test_the_table_has_every_state_and_event_once() -> None:
    pairs = [(state, event) for state, event, _ in cells()]
    assert sorted(pairs, key=str) == sorted(((s, e) for s in ShardState for e in ShardEvent), key=str)


def test_from_every_state_the_app_can_stop_and_a_stopped_shard_is_never_started_again() -> None:
    assert all(ShardState.STOPPED in reachable(state) for state in set(ShardState) - {ShardState.STOPPED})
    assert reachable(ShardState.STOPPED) == set()


def test_only_a_shard_that_was_never_ready_is_starting() -> None:
    """So a failed start stops the app only before the shard was ready for the first time."""
    assert all(ShardState.STARTING not in reachable(state) for state in ShardState)


def test_every_state_but_the_last_two_leads_back_to_ready() -> None:
    last = {ShardState.LEAVING, ShardState.STOPPED}
    assert all(ShardState.READY in reachable(state) for state in set(ShardState) - last)
    assert reachable(ShardState.LEAVING) == last


def test_status_shows_these_words_and_no_other() -> None:
    assert {state.name: state.label for state in ShardState} == {
        "STARTING": "starting",
        "READY": "ready",
        "DRAINING": "draining",
        "DRAINED": "drained",
        "RESTART_DRAINING": "draining",
        "RESTART_STOPPING": "restarting",
        "RESTART_STARTING": "starting",
        "RECOVERING": "restarting",
        "LEAVING": "leaving",
        "STOPPED": "stopped",
    }


def test_a_report_is_asked_for_only_between_ready_and_the_end_of_the_process() -> None:
    assert {state.label for state in REPORTING} == {"ready", "draining", "drained", "leaving"}
    assert {state for state in ShardState if state.label in {state.label for state in REPORTING}} == REPORTING
