"""Sends a `World` of machines through every order of events, and checks what must hold in each state."""

from collections import deque

from tests.cluster.coordinator_world import (
    KEYS,
    CoordinationViolated,
    Rules,
    World,
    entry_from,
    misfortunes,
    moves,
    served_keys,
    with_calls,
)


def explore(start: World, rules: Rules | None = None, *, limit: int = 2_000_000) -> int:
    """The number of states.

    Raises:
        CoordinationViolated: a promise does not hold in one of them.
    """
    rules = rules or Rules()
    states, waiting = {start}, deque([start])
    while waiting:
        world = waiting.pop()
        check(world)
        own = list(moves(world, rules))
        if not own:
            check_at_rest(world)
        for following in map(with_calls, [*own, *misfortunes(world)]):
            if following not in states:
                states.add(following)
                waiting.append(following)
                if len(states) > limit:
                    raise AssertionError(f"more than {limit} states")
    return len(states)


def check(world: World) -> None:
    for key in KEYS:
        owners = [life for life in world.lives if key in served_keys(life)]
        if len(owners) > 1:
            raise CoordinationViolated(f"two lives serve a key: {key}: {[owner.number for owner in owners]}")
        if not world.has_died and any(key in world.created and key not in owner.state for owner in owners):
            raise CoordinationViolated(f"state is lost without a death: {key} is served without it")
    has = {key for life in world.lives for key in life.state}
    if not world.has_died and not world.created <= has:
        raise CoordinationViolated(f"state is lost without a death: {world.created - has}")


def check_at_rest(world: World) -> None:
    """Nothing goes on by itself any more."""
    entry = entry_from(world.entry)
    wanted = {number for machine in world.machines for number in machine.wants}
    if not wanted and (entry is None or entry.following is None):
        # Nobody is there that could own keys; they wait.
        return
    if entry is None:
        raise CoordinationViolated("no way on: there is no placement")
    if entry.following is not None:
        raise CoordinationViolated(f"no way on: the change to epoch {entry.following.epoch} does not end")
    named = {member.life for member in entry.placement.members}
    if named != wanted:
        raise CoordinationViolated(f"no way on: {wanted} are to own keys, and {named} do")
    if not all(any(key in served_keys(life) for life in world.lives) for key in KEYS):
        raise CoordinationViolated("no way on: a key is served by nobody")
    if {life.number for life in world.lives} - named:
        raise CoordinationViolated("no way on: a life that is left out does not end")
