"""Whom the lives of a change say that they wait for: what must be true of it in each state.

A supervisor ends a life that says of itself, for too long, that a step of its own is missing. So none may say that
which has no step to make, or those that wait would be ended, with their memory; and one that has must say it, or nobody
would be."""

from typing import Any

from tests.core.handoff_machines import Machines
from tests.core.handoff_world import Life, Violated, World, is_changing

BLAME = "who holds a change up says so, and nobody else"


def check_blame(world: World, machines: Machines) -> None:
    if not machines.checks_blame or not is_changing(world):
        return
    parts = {life.member.life: life for life in world.lives if _has_part(life, world)}
    for life in parts.values():
        _check_own_step(life, machines)
        for other in waits_for(life, machines) - {life.member.life}:
            if other in parts and not _may_be_named(life, parts[other], world, machines):
                raise Violated(BLAME, f"life {life.member.life} waits for life {other}, which owes it nothing")


def waits_for(life: Life, machines: Machines) -> frozenset[int]:
    assert life.handoff is not None
    question = ("waits for", life.handoff)
    if question not in machines.places:
        machines.places[question] = life.handoff.value.waits_for()
    answer: frozenset[int] = machines.places[question]
    return answer


def _has_part(life: Life, world: World) -> bool:
    return life.handoff is not None and life.handoff.value.after.epoch == world.epoch


def _check_own_step(life: Life, machines: Machines) -> None:
    number = life.member.life
    installs = any(state for _, _, state in life.installing)
    has_step = bool(life.unscanned or installs or _busy_keys(life))
    if has_step != (number in waits_for(life, machines)):
        raise Violated(BLAME, f"life {number} has {'a' if has_step else 'no'} step to make, and does not say so")


def _busy_keys(life: Life) -> list[str]:
    assert life.handoff is not None
    held = {*life.stuck, *(key for key, _ in life.running)}
    return [key for key in held if life.handoff.value.is_busy(key)]


def _may_be_named(life: Life, other: Life, world: World, machines: Machines) -> bool:
    """Something is on its way between the two, or one of them has a step of its own to make."""
    if any(each.member.life in waits_for(each, machines) for each in (life, other)):
        return True
    return any(_is_between(ends, life, other) for ends, _ in world.channels)


def _is_between(ends: tuple[Any, ...], life: Life, other: Life) -> bool:
    """A message of one to the other, or an order to one of them."""
    if ends[0] in ("orders", "reports"):
        return ends[0] == "orders" and ends[1] in (life.member.life, other.member.life)
    names = ({life.member.life, life.member.socket}, {other.member.life, other.member.socket})
    return all(set(ends[1:]) & name for name in names)
