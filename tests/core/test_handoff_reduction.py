"""The reduced exploration ends in the same states as the full one, leads each life through the same states of its own,
and finds the same violations.

Here in a small scope; ONELANE_CHAOS=1 compares larger ones too, with each planted fault, for some minutes.
"""

from dataclasses import replace
from typing import NamedTuple

import pytest
from onelane.core.handoff import Handoff
from onelane.core.placement_change import PlacementChange

from tests.core import handoff_faults as faults
from tests.core import handoff_reduction
from tests.core.handoff_explorer import check, first_world, moves_of, next_world, own_moves
from tests.core.handoff_machines import Machines
from tests.core.handoff_reduction import suits
from tests.core.handoff_world import Life, Scenario, Violated, World, where
from tests.core.test_handoff_explored import CHAOS, FAULTS, HARSH, MOVES, RESTART, SCALE, STUCK, one_change

ONE_KEY = Scenario(owners=({"k": "a"}, {"k": "b"}), names=("ab", "ab"), calls="k", crashes=1)
SCOPES = {"one key": ONE_KEY}
LARGER = {
    "restart": one_change(RESTART, "k", crashes=1),
    "restart, two calls": one_change(RESTART, "kl", crashes=1),
    "one key, there and back": replace(ONE_KEY, owners=({"k": "a"}, {"k": "b"}, {"k": "a"}), names=("ab", "ab", "ab")),
    "restart, two changes": replace(RESTART, calls="k", crashes=1),
    "scale": one_change(SCALE, "k", crashes=1),
    "moves": one_change(MOVES, "k", crashes=1),
}
USUAL_FAULTS: list[type[Handoff | PlacementChange]] = [
    faults.DoesNotSendAgain,
    faults.KeepsTheNextLifeToItself,
]


class Outcome(NamedTuple):
    """What an exploration has seen."""

    ends: set[object]
    """What is left in each state in which nothing happens any more."""
    lives: set[object]
    """The states of each life, for itself."""
    violated: set[str]
    """The names of all violations."""
    states: int


def outcome(scenario: Scenario, machines: Machines) -> Outcome:
    first = first_world(scenario, machines)
    visited, following = {hash(first)}, [first]
    quiet: set[object] = set()
    lives: set[object] = set()
    violated: set[str] = set()
    while following:
        world = following.pop()
        lives |= {state_of(life, scenario, machines) for life in world.lives}
        try:
            check(world, scenario, machines)
        except Violated as violation:
            violated.add(violation.name)
            continue
        if not any(own_moves(world)):
            quiet.add(left_in(world))
        for move in moves_of(world, scenario, machines):
            try:
                reached = next_world(world, move, scenario, machines)
            except Violated as violation:
                violated.add(violation.name)
            except AssertionError:
                violated.add("an event for a machine that is no more")
            else:
                following += [reached] if hash(reached) not in visited else []
                visited.add(hash(reached))
    return Outcome(quiet, lives, violated, len(visited))


def state_of(life: Life, scenario: Scenario, machines: Machines) -> object:
    """Without the calls that wait: one that waits, and one that comes later, are the same to the reduction."""
    places = tuple(where(machines, life, key, 0) for key in scenario.keys)
    return life.member, life.placement.value.members, life.handoff is None, life.memory, life.running, places


def left_in(world: World) -> object:
    """All but the two machines themselves, which remember in which order they have heard what no longer counts."""
    lives = tuple((life.member, life.memory, life.waiting, life.is_leaving) for life in world.lives)
    calls = (world.crashes, world.entered, world.answered, world.failed, world.may_be_lost)
    return lives, calls, world.epoch, world.placement.value.members, world.dead


@pytest.mark.timeout(2400 if CHAOS else 60)
@pytest.mark.parametrize("name", SCOPES | LARGER if CHAOS else SCOPES)
def test_the_reduced_exploration_ends_in_the_same_states(name: str) -> None:
    scenario = (SCOPES | LARGER)[name]
    full, reduced = outcome(scenario, Machines()), outcome(replace(scenario, reduced=True), Machines())
    assert reduced[:3] == full[:3]
    assert not full.violated
    assert reduced.states < full.states


def test_a_rule_that_is_not_exact_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The acknowledgement of a dead life races with the word of its death."""
    monkeypatch.setattr(handoff_reduction._Reduction, "_answer_comes_first", lambda *_: True)
    ends = [outcome(scenario, Machines()).ends for scenario in (ONE_KEY, replace(ONE_KEY, reduced=True))]
    assert ends[1] < ends[0]


@pytest.mark.timeout(2400 if CHAOS else 60)
@pytest.mark.parametrize("name", ["one key", "one key, there and back", "restart"] if CHAOS else ["one key"])
@pytest.mark.parametrize("fault", [fault for fault, _, _ in FAULTS] if CHAOS else USUAL_FAULTS)
def test_the_reduced_exploration_finds_the_same_violations(name: str, fault: type[Handoff | PlacementChange]) -> None:
    scenario = (SCOPES | LARGER)[name]
    violations = []
    for explored in (scenario, replace(scenario, reduced=True)):
        machines = Machines(handoff=fault) if issubclass(fault, Handoff) else Machines(change=fault)
        violations.append(outcome(explored, machines).violated)
    assert violations[0] == violations[1]


@pytest.mark.parametrize(
    "scenario", [HARSH["moves"], STUCK, one_change(MOVES, "kk", crashes=1), one_change(MOVES, "k", crashes=2)]
)
def test_a_scenario_for_which_it_is_not_exact_is_refused(scenario: Scenario) -> None:
    assert not suits(scenario)
