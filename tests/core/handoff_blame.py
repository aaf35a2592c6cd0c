"""Whom the lives of a change say that they wait for: what must be true of it in each state.

A supervisor ends a life that says of itself, for too long, that a step of its own is missing. So none may say that
which has no step to make, or those that wait would be ended, with their memory; and one that has must say it, or nobody
would be."""

from typing import Any

from onelane.core.placement import Member

from tests.core.handoff_machines import Machines
from tests.core.handoff_world import Life, Violated, World, is_changing

BLAME = "who holds a change up says so, and nobody else"


def check_blame(world: World, machines: Machines) -> None:
    if not machines.checks_blame or not is_changing(world):
        return
    parts = {life.member.life: life for life in world.lives if _has_part(life, world)}
    waits = {number: waits_for(life, machines) for number, life in parts.items()}
    for number, life in parts.items():
        _check_own_step(life, says_so=number in waits[number])
    without_step = {number: others for number, others in waits.items() if number not in others}
    for number, others in without_step.items():
        for other in others & without_step.keys():
            if _channels_between(parts[number].member, parts[other].member).isdisjoint(dict(world.channels)):
                raise Violated(BLAME, f"life {number} waits for life {other}, which owes it nothing")


def waits_for(life: Life, machines: Machines) -> frozenset[int]:
    assert life.handoff is not None
    question = ("waits for", life.handoff)
    if question not in machines.places:
        machines.places[question] = life.handoff.value.waits_for()
    answer: frozenset[int] = machines.places[question]
    return answer


def _has_part(life: Life, world: World) -> bool:
    return life.handoff is not None and life.handoff.value.after.epoch == world.epoch


def _check_own_step(life: Life, *, says_so: bool) -> None:
    installs = any(state for _, _, state in life.installing)
    has_step = bool(life.unscanned or installs or _busy_keys(life))
    if has_step != says_so:
        step = "a" if has_step else "no"
        raise Violated(BLAME, f"life {life.member.life} has {step} step to make, and does not say so")


def _busy_keys(life: Life) -> list[str]:
    assert life.handoff is not None
    held = {*life.stuck, *(key for key, _ in life.running)}
    return [key for key in held if life.handoff.value.is_busy(key)]


def _channels_between(member: Member, other: Member) -> set[tuple[Any, ...]]:
    """Of messages of one to the other, and of orders to one of them."""
    return {
        ("orders", member.life),
        ("orders", other.life),
        ("moves", member.life, other.socket),
        ("moves", other.life, member.socket),
        ("answers", member.life, other.life),
        ("answers", other.life, member.life),
    }
