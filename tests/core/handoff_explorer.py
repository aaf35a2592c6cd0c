"""Sends a `World` through every order of events, or through a random one, and checks what must hold in each state."""

from collections.abc import Iterator
from random import Random
from typing import Any

from onelane.core.placement_change import Over, Phase

from tests.core.handoff_blame import check_blame
from tests.core.handoff_machines import Machines, Shared
from tests.core.handoff_reduction import Move, needed_moves, suits, tells_of_a_death
from tests.core.handoff_step import Step
from tests.core.handoff_world import Life, Scenario, Violated, World, is_changing, may_serve, member_of, placement_of

CRASHES = 0.2
"""The part of the moves of a random way that may be a crash: more, and no state lives long enough to be lost."""


def own_moves(world: World) -> Iterator[Move]:
    """What the processes do by themselves."""
    for ends, messages in world.channels:
        if is_deliverable(world, ends, messages[0]):
            yield Step.deliver, (ends,)
    for flight in world.calls:
        yield Step.travel, (flight,)
    for life in world.lives:
        for key, _ in life.running:
            yield Step.end_turn, (life.member.life, key)
        for key in life.stuck:
            yield Step.end_stuck, (life.member.life, key)
        if life.unscanned:
            yield Step.scan, (life.member.life,)
        if life.installing:
            yield Step.install, (life.member.life,)
    for member in world.dead:
        yield Step.launch, (member,)


def outside_moves(world: World, scenario: Scenario) -> Iterator[Move]:
    """What comes from clients and operators, and misfortune."""
    if not is_changing(world) and world.epoch < len(scenario.owners):
        yield Step.start_change, ()
    for life in world.lives:
        if world.entered < len(scenario.calls) and not life.is_leaving:
            yield Step.enter, (life.member.life,)
        if world.crashes:
            yield Step.crash, (life.member.life,)
        for key in busy_keys(life) if world.give_ups else ():
            yield Step.give_up, (life.member.life, key)
    for ends, messages in world.channels if world.repeats else ():
        if ends[0] == "moves" and is_deliverable(world, ends, messages[0]):
            yield Step.repeat, (ends,)


def busy_keys(life: Life) -> list[str]:
    if life.handoff is None:
        return []
    held = sorted({*life.stuck, *(key for key, _ in life.running)})
    return [key for key in held if life.handoff.value.is_busy(key)]


def is_deliverable(world: World, ends: tuple[Any, ...], message: Any) -> bool:
    """A batch waits for `Prepare` of its change, and for the batch before it."""
    if ends[0] != "moves":
        return True
    receiver = next((life for life in world.lives if life.member.socket == ends[2]), None)
    if receiver is None:
        return True
    is_expected = message[1] <= receiver.placement.value.epoch
    return is_expected and not any(sender == ends[1] for sender, _, _ in receiver.installing)


def moves_of(world: World, scenario: Scenario, machines: Machines) -> list[Move]:
    """The moves to follow: all, or some that may as well come before all others."""
    if scenario.reduced and (needed := needed_moves(world, machines)):
        return needed
    if not (world.crashes or world.dead or any(map(tells_of_a_death, world.channels))):
        for ends, messages in world.channels:
            if is_independent(ends, messages[0]):
                return [(Step.deliver, (ends,))]
    return [*own_moves(world), *outside_moves(world, scenario)]


def is_independent(ends: tuple[Any, ...], message: Any) -> bool:
    """Whether each other move leads to the same state before and after this one, so that one order is enough.

    As long as no life has died or may die, an acknowledgement, a report, and the end of a change are of this kind.
    """
    if ends[0] == "orders" and isinstance(message, Shared) and isinstance(message.value, Over):
        return all(member.life != ends[1] for member in message.value.leaving)
    return ends[0] in ("answers", "reports")


def check(world: World, scenario: Scenario, machines: Machines) -> None:
    for key in scenario.keys:
        serving = [life.member.life for life in world.lives if may_serve(machines, life, key)]
        if len(serving) > 1:
            raise Violated("one life serves a key", f"lives {serving} may serve {key}")
    check_blame(world, machines)
    if not any(own_moves(world)):
        check_quiet(world, scenario)


def check_quiet(world: World, scenario: Scenario) -> None:
    """What holds where nothing happens any more unless it comes from outside."""
    if world.change and world.change.value.phase is not Phase.OVER:
        raise Violated("there is a way on", f"the change waits for {set(world.change.value.waits_for())}")
    waiting = [call for call in range(world.entered) if call not in world.answered | world.failed]
    if waiting:
        raise Violated("every call is answered", f"calls {waiting} are not")
    if not scenario.crashes and not scenario.give_ups and world.failed:
        raise Violated("every call is answered", f"calls {set(world.failed)} failed without a crash")
    for life in world.lives:
        if life.placement.value.epoch != world.epoch or life.handoff:
            raise Violated("there is a way on", f"life {life.member.life} is left in the change")
    for key in scenario.keys:
        check_memory(world, scenario, key)


def check_memory(world: World, scenario: Scenario, key: str) -> None:
    states = {life.member.life: dict(life.memory)[key] for life in world.lives if key in dict(life.memory)}
    owner = world.placement.value.owner_of(key).life
    if not states.keys() <= {owner}:
        raise Violated("no change is lost", f"lives {[*states]} hold the state of {key}, which is of life {owner}")
    missing = world.must_be_there(scenario, key) - states.get(owner, frozenset())
    if missing:
        raise Violated("no change is lost", f"{set(missing)} of {key} are lost")


def first_world(scenario: Scenario, machines: Machines) -> World:
    members = [member_of(name, number) for number, name in enumerate(scenario.names[0], 1)]
    placement = machines.share(placement_of(1, members, scenario))
    return World(
        placement=placement,
        next_life=len(members) + 1,
        lives=tuple(Life(member, placement) for member in members),
        crashes=scenario.crashes,
        repeats=scenario.repeats,
        give_ups=scenario.give_ups,
    )


def next_world(world: World, move: Move, scenario: Scenario, machines: Machines) -> World:
    step = Step(world, scenario, machines)
    method, details = move
    method(step, *details)
    return step.result()


def explore(scenario: Scenario, machines: Machines) -> int:
    """Visit every state that can be reached, depth first; their number.

    What is kept of a state that was visited is its hash, of 64 bits: of ten million states, two have the same one
    with a chance of 3 to a million, and then one of the two is not visited.

    Raises:
        Violated: a property does not hold; with the path to it.
    """
    assert suits(scenario) or not scenario.reduced
    first = first_world(scenario, machines)
    visited = {hash(first)}
    path: list[Move] = []
    following: list[tuple[World, Iterator[Move]]] = [(first, _checked_moves(first, scenario, machines))]
    """Each world on the way to the last one, and the moves from it that are to be made yet."""
    try:
        while following:
            world, moves = following[-1]
            for move in moves:
                path.append(move)
                reached = next_world(world, move, scenario, machines)
                if (mark := hash(reached)) not in visited:
                    visited.add(mark)
                    following.append((reached, _checked_moves(reached, scenario, machines)))
                    break
                path.pop()
            else:
                following.pop()
                del path[-1:]
    except Violated as violated:
        violated.add_note(as_text(path))
        raise
    return len(visited)


def _checked_moves(world: World, scenario: Scenario, machines: Machines) -> Iterator[Move]:
    check(world, scenario, machines)
    return iter(moves_of(world, scenario, machines))


def walk(scenario: Scenario, machines: Machines, seed: int) -> int:
    """One random order of events, to its end; the number of its states.

    Raises:
        Violated: a property does not hold; with the path to it.
    """
    chance = Random(seed)
    world = first_world(scenario, machines)
    path: list[Move] = []
    try:
        while True:
            check(world, scenario, machines)
            moves = [*own_moves(world), *outside_moves(world, scenario)]
            if not moves:
                return len(path) + 1
            calm = [move for move in moves if move[0] is not Step.crash]
            path.append(chance.choice(calm if calm and chance.random() > CRASHES else moves))
            world = next_world(world, path[-1], scenario, machines)
    except Violated as violated:
        violated.add_note(as_text(path))
        raise


def as_text(path: list[Move]) -> str:
    return "\n".join(f"{method.__name__}{details}" for method, details in path)
