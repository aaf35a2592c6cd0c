"""Machines, their lives and coordinators in every order of events; with planted faults, which must be found.

ONELANE_CHAOS=1 explores larger clusters, for some minutes.
"""

import os
import sys
from dataclasses import replace

import pytest
from onelane.cluster import coordinator, following
from onelane.cluster.coordinator import AppLives
from onelane.cluster.following import Beginning, Known, Message
from onelane.cluster.placements import AppEntry

from tests.cluster.coordinator_explorer import explore
from tests.cluster.coordinator_world import CoordinationViolated, Machine, Rules, World

ONE, TWO = (Machine("a", 1),), (Machine("a", 1), Machine("b", 2))
JOIN = ("join a", "join b")
CHAOS = "ONELANE_CHAOS" in os.environ
USUAL = {
    "two machines join": World(TWO, plan=JOIN),
    "a shard is rolled": World(ONE, plan=("join a", "roll a")),
    "a shard is rolled, and a life dies": World(ONE, plan=("join a", "roll a"), crashes=1),
    "a machine leaves": World(TWO, plan=(*JOIN, "leave a")),
    "two machines join, and a life dies": World(TWO, plan=JOIN, crashes=1),
    "two machines join, and one is given up": World(TWO, plan=JOIN, given_up=1),
    "a machine leaves, and one is given up": World(TWO, plan=(*JOIN, "leave a"), given_up=1),
}
LONG = {
    "a machine is given up, and comes back": World(TWO, plan=JOIN, given_up=1, comes_back=1),
}
EXPLORED = USUAL | LONG if CHAOS else USUAL


@pytest.mark.timeout(3600 if CHAOS else 300)
@pytest.mark.parametrize("name", EXPLORED)
def test_no_two_lives_serve_a_key_no_state_is_lost_and_there_is_a_way_on(name: str) -> None:
    states = explore(EXPLORED[name])
    sys.stdout.write(f"{name}: {states} states\n")
    assert states > 50


def without_deaths(entry: AppEntry | None, lives: AppLives, *, points: int) -> AppEntry | None:
    """A life that dies in a change is forgotten."""
    changed = coordinator.next_entry(entry, lives, points=points)
    is_same = entry is not None and changed is not None and changed.following == entry.following is not None
    return None if is_same else changed


def without_stand_ins(entry: AppEntry | None, lives: AppLives, *, points: int) -> AppEntry | None:
    changed = coordinator.next_entry(entry, lives, points=points)
    return None if changed is not None and changed.stand_ins else changed


def without_a_word_of_all(entry: AppEntry | None, lives: AppLives, *, points: int) -> AppEntry | None:
    """A change is over at the first report."""
    if entry is not None and entry.following is not None and any(lives.reports(entry.following.epoch)):
        return replace(entry.ended(entry.change()[0].after), leases=entry.leases)
    return coordinator.next_entry(entry, lives, points=points)


def begins_at_once(entry: AppEntry | None, life: int, *, follows: bool) -> Beginning | None:
    """The next life of a shard owns its keys without the coordinator's word."""
    if entry is None or not follows:
        return following.beginning(entry, life, follows=follows)
    members = tuple(replace(m, life=life) for m in entry.placement.members)
    return Beginning(Known(life, entry.placement.epoch, is_named=True), replace(entry.placement, members=members[:1]))


def tells_placements_only(known: Known, entry: AppEntry | None) -> tuple[Known, list[Message]]:
    return known.news(None if entry is None else replace(entry, following=None))


JOINING = World(TWO, plan=JOIN)
FAULTS: dict[str, tuple[str, World, Rules]] = {
    "deaths": ("does not end", JOINING._replace(crashes=1), Rules(next_entry=without_deaths)),
    "stand-ins": ("does not end", JOINING._replace(given_up=1), Rules(next_entry=without_stand_ins)),
    "ends early": ("state is lost without a death", JOINING, Rules(next_entry=without_a_word_of_all)),
    "begins at once": ("two lives", JOINING._replace(crashes=1), Rules(beginning=begins_at_once)),
    "late writes": (
        "two lives|lost|no way on",
        JOINING._replace(crashes=1),
        Rules(late_writes=True),
    ),
    "no orders": ("does not end", JOINING, Rules(news=tells_placements_only)),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str) -> None:
    expected, world, rules = FAULTS[name]
    with pytest.raises(CoordinationViolated, match=expected):
        explore(world, rules)
