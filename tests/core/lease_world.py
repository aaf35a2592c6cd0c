"""A machine that renews its lease, and whose keys another machine gets once it is given up: each event as a function.

All times are relative to now, so a state that comes back is one that was visited. The clock of the machine, that of the
store of leases and the coordinator's each run at their own rate.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

from onelane.core.lease import Fence, LeaseTerms, MachineLease, gone_at

LEASE = 1000
TERMS = LeaseTerms(LEASE)
PAST = -1
"""Any time that has passed: one value for all of them, or there would be no end of states."""
OTHER = 0
"""The owner that is another machine; any other number is the lease of the life that owns the key."""


class LeaseViolated(AssertionError):
    """A property does not hold in a state that can be reached."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name


@dataclass(frozen=True)
class Rates:
    """What each clock counts in one tick of true time, which is a part of `LEASE`."""

    machine: int
    store: int
    coordinator: int


@dataclass(frozen=True)
class Drift:
    """What may happen, and the clocks with which it happens; and what of the code under test a fault replaces."""

    rates: Rates
    joins: int = 0
    """How often the machine joins again, once it has been given up."""
    in_flight: int = 1
    """Renewals and answers under way at the same time."""
    unread: int = 1
    """What the supervisor may have told a life that the life has not read."""
    pauses: bool = False
    """Life and supervisor may be stopped at any time (SIGSTOP), and go on at any later one."""
    outages: bool = False
    """The store may be down."""
    forgets: int = 0
    """How often an operator may have the lease revoked while it is held."""
    is_checked_before_the_answer: bool = True
    lease: type[MachineLease] = MachineLease
    fence: type[Fence] = Fence
    gone_at: Callable[..., float] = gone_at
    ends_lives_early: bool = False
    """A fault: the supervisor ends its lives once they are fenced."""
    waits_for_expiry: bool = True
    """False is a fault: the coordinator gives a machine up once it was not heard of for half a lease."""


class LeasedLife(NamedTuple):
    """A process of the machine, with the state of the key."""

    fence: Fence
    owns: bool = False
    """By the last placement that it knows."""
    is_in_turn: bool = False
    is_paused: bool = False
    line: tuple[tuple[int, int], ...] = ()
    """What the supervisor has told it, and it has not read."""


class LeaseWorld(NamedTuple):
    """A state of everything."""

    lease: MachineLease | None
    """The supervisor's; None while it joins."""
    lives: tuple[LeasedLife, ...]
    owner: int
    stored: int
    """The lease that the store has, or 0."""
    left: int
    """Of that lease, by the store's clock."""
    joins: int
    forgets: int
    requests: tuple[tuple[int, int], ...] = ()
    """Renewals under way: (lease, sent at)."""
    answers: tuple[tuple[int, int, int], ...] = ()
    """(lease, sent at, seconds granted)."""
    granting: tuple[int, int] | None = None
    """The answer to a request to join: (lease, sent at)."""
    is_paused: bool = False
    """The supervisor."""
    is_down: bool = False
    """The store."""
    was_forgotten: bool = False
    wait: int | None = None
    """Until the coordinator gives a forgotten machine up."""
    won: int = PAST
    """Until when the answered renewals of this lease allow to serve."""


LeaseMove = tuple[str, tuple[Any, ...]]
"""An event below, by its name, and its arguments."""


def first_lease_world(drift: Drift) -> LeaseWorld:
    lease = drift.lease.granted(TERMS, 1, 0, LEASE)
    life = LeasedLife(drift.fence(1, lease.serve_until), owns=True)
    return LeaseWorld(lease, (life,), 1, 1, LEASE, drift.joins, drift.forgets, won=int(lease.serve_until))


# What may happen.


def moves(world: LeaseWorld, drift: Drift) -> Iterator[LeaseMove]:
    yield from _works(world, drift)
    for number in range(len(world.requests)):
        yield "lose_request", (number,)
    for number in range(len(world.answers)):
        yield "lose_answer", (number,)
    if drift.outages:
        yield "go_down_or_up", ()
    if world.forgets and world.stored and world.lease and world.lease.lease_id == world.stored:
        yield "forget", ()
    if drift.pauses:
        yield "pause_or_resume_supervisor", ()
    for number, life in enumerate(world.lives):
        if drift.pauses:
            yield "pause_or_resume", (number,)
        if not life.is_paused and (life.is_in_turn or (life.owns and life.fence.may_serve(0))):
            yield "end_turn" if life.is_in_turn else "begin_turn", (number,)
    yield "tick", ()


def _works(world: LeaseWorld, drift: Drift) -> Iterator[LeaseMove]:
    """What the processes do as soon as they can."""
    lease = world.lease
    if not world.is_down:
        for number in range(len(world.requests)):
            yield "renew", (number,)
        if world.stored and world.left <= 0:
            yield "expire", ()
        if lease is None and world.granting is None and not world.stored and world.joins and not world.is_paused:
            yield "join", ()
    yield from _works_of_the_supervisor(world, drift)
    for number, life in enumerate(world.lives):
        if life.line and not life.is_paused:
            yield "read_line", (number,)
    if world.owner not in (OTHER, world.stored):
        if world.was_forgotten and world.wait is None:
            yield "see_forgotten", ()
        elif world.wait is None or world.wait <= 0:
            yield "give_up", ()
    elif not drift.waits_for_expiry and world.owner != OTHER and world.left <= LEASE // 2:
        yield "give_up", ()
    if world.owner == OTHER and any(life.fence.lease_id == world.stored and not life.owns for life in world.lives):
        yield "hand_back", ()


def _works_of_the_supervisor(world: LeaseWorld, drift: Drift) -> Iterator[LeaseMove]:
    lease = world.lease
    if world.is_paused:
        return
    for number, life in enumerate(world.lives):
        is_other = lease is None or life.fence.lease_id != lease.lease_id
        if is_other or (drift.ends_lives_early and life.fence.until <= 0):
            yield "end_life", (number,)
    for number in range(len(world.answers)):
        yield "hear", (number,)
    if world.granting:
        yield "joined", ()
    if lease is None:
        return
    if lease.is_lost:
        yield "leave", ()
    elif lease.lease_id != world.stored:
        yield "see_loss", ()
    if not lease.is_lost and lease.renew_at <= 0 and len(world.requests + world.answers) < drift.in_flight:
        yield "send", ()


# The machine.


def send(world: LeaseWorld, drift: Drift) -> LeaseWorld:
    assert world.lease
    sent = world.lease.renewal_sent(0)
    return world._replace(lease=sent, requests=(*world.requests, (sent.lease_id, 0)))


def hear(world: LeaseWorld, drift: Drift, number: int) -> LeaseWorld:
    lease_id, sent_at, ttl = world.answers[number]
    world = world._replace(answers=_without(world.answers, number))
    lease = world.lease
    if lease is None or lease.lease_id != lease_id:
        return world
    heard = lease.renewed(sent_at, ttl)
    won = max(world.won, sent_at + LEASE - LEASE // 5) if ttl else world.won
    world = world._replace(lease=heard, won=won)
    if heard.serve_until == lease.serve_until:
        return world
    line = (lease_id, int(heard.serve_until))
    # What came before is as good as lost: it says less.
    lives = tuple(life._replace(line=(*life.line, line)[-drift.unread :]) for life in world.lives)
    return world._replace(lives=lives)


def see_loss(world: LeaseWorld, drift: Drift) -> LeaseWorld:
    assert world.lease
    return world._replace(lease=world.lease.lost())


def leave(world: LeaseWorld, drift: Drift) -> LeaseWorld:
    """The supervisor joins anew; the lives of the lease that is lost end meanwhile, or later."""
    return world._replace(lease=None, won=PAST)


def end_life(world: LeaseWorld, drift: Drift, number: int) -> LeaseWorld:
    """SIGKILL, which ends a process that is stopped, too."""
    if world.lives[number].fence.lease_id == world.stored:
        raise LeaseViolated("memory is kept", f"lease {world.stored} is held, and a life of it ends")
    return world._replace(lives=_without(world.lives, number))


def join(world: LeaseWorld, drift: Drift) -> LeaseWorld:
    lease_id = drift.joins - world.joins + 2
    return world._replace(stored=lease_id, left=LEASE, granting=(lease_id, 0), joins=world.joins - 1)


def joined(world: LeaseWorld, drift: Drift) -> LeaseWorld:
    assert world.granting
    lease_id, sent_at = world.granting
    lease = drift.lease.granted(TERMS, lease_id, sent_at, LEASE)
    until = max(int(lease.serve_until), PAST)
    life = LeasedLife(drift.fence(lease_id, until))
    lease = replace(lease, serve_until=until)
    return world._replace(lease=lease, granting=None, won=until, lives=(*world.lives, life))


# A life.


def read_line(world: LeaseWorld, drift: Drift, number: int) -> LeaseWorld:
    life = world.lives[number]
    return _with_life(world, number, life._replace(fence=life.fence.extended(*life.line[0]), line=life.line[1:]))


def begin_turn(world: LeaseWorld, drift: Drift, number: int) -> LeaseWorld:
    return _with_life(world, number, world.lives[number]._replace(is_in_turn=True))


def end_turn(world: LeaseWorld, drift: Drift, number: int) -> LeaseWorld:
    """The answer leaves, unless the fence is closed."""
    life = world.lives[number]
    is_answered = life.fence.may_serve(0) or not drift.is_checked_before_the_answer
    if is_answered and world.owner != life.fence.lease_id:
        raise LeaseViolated("no answer after the next owner", f"of a life of lease {life.fence.lease_id}")
    return _with_life(world, number, life._replace(is_in_turn=False))


def pause_or_resume(world: LeaseWorld, drift: Drift, number: int) -> LeaseWorld:
    life = world.lives[number]
    return _with_life(world, number, life._replace(is_paused=not life.is_paused))


def pause_or_resume_supervisor(world: LeaseWorld, drift: Drift) -> LeaseWorld:
    return world._replace(is_paused=not world.is_paused)


# The store, and the network to it.


def renew(world: LeaseWorld, drift: Drift, number: int) -> LeaseWorld:
    """A lease that is overdue is given up first; etcd waits for that before it answers, too."""
    lease_id, sent_at = world.requests[number]
    world = expire(world, drift) if world.left <= 0 else world
    is_held = world.stored == lease_id
    answer = (lease_id, sent_at, LEASE if is_held else 0)
    world = world._replace(requests=_without(world.requests, number), answers=(*world.answers, answer))
    return world._replace(left=LEASE) if is_held else world


def lose_request(world: LeaseWorld, drift: Drift, number: int) -> LeaseWorld:
    return world._replace(requests=_without(world.requests, number))


def lose_answer(world: LeaseWorld, drift: Drift, number: int) -> LeaseWorld:
    return world._replace(answers=_without(world.answers, number))


def expire(world: LeaseWorld, drift: Drift) -> LeaseWorld:
    return world._replace(stored=0, left=0)


def go_down_or_up(world: LeaseWorld, drift: Drift) -> LeaseWorld:
    """A store that is up again has a new leader, which gives each lease its whole time."""
    left = LEASE if world.is_down and world.stored else world.left
    return world._replace(is_down=not world.is_down, left=left)


def forget(world: LeaseWorld, drift: Drift) -> LeaseWorld:
    return world._replace(stored=0, left=0, forgets=world.forgets - 1, was_forgotten=True)


# The coordinator.


def see_forgotten(world: LeaseWorld, drift: Drift) -> LeaseWorld:
    return world._replace(wait=int(drift.gone_at(0, lease_s=LEASE, was_forgotten=True)))


def give_up(world: LeaseWorld, drift: Drift) -> LeaseWorld:
    return world._replace(owner=OTHER, was_forgotten=False, wait=None)


def hand_back(world: LeaseWorld, drift: Drift) -> LeaseWorld:
    """The key goes back to the machine, by a hand-over to its new life."""
    number = next(number for number, life in enumerate(world.lives) if life.fence.lease_id == world.stored)
    world = _with_life(world, number, world.lives[number]._replace(owns=True))
    return world._replace(owner=world.stored)


# Time.


def tick(world: LeaseWorld, drift: Drift) -> LeaseWorld:
    rates = drift.rates
    wait = None if world.wait is None else max(world.wait - rates.coordinator, 0)
    return world._replace(
        lease=_older_lease(world.lease, rates.machine),
        lives=tuple(_older_life(life, rates.machine) for life in world.lives),
        left=world.left if world.is_down else max(world.left - rates.store, 0),
        requests=tuple((lease, _sent(at, rates)) for lease, at in world.requests),
        answers=tuple((lease, _sent(at, rates), ttl) for lease, at, ttl in world.answers),
        granting=world.granting and (world.granting[0], _sent(world.granting[1], rates)),
        wait=wait,
        won=max(world.won - rates.machine, PAST),
    )


@cache
def _older_lease(lease: MachineLease | None, by: int) -> MachineLease | None:
    if lease is None or lease.is_lost:
        return lease and replace(lease, serve_until=PAST, renew_at=0)
    return replace(lease, serve_until=max(lease.serve_until - by, PAST), renew_at=max(lease.renew_at - by, 0))


@cache
def _older_life(life: LeasedLife, by: int) -> LeasedLife:
    fence = replace(life.fence, until=max(life.fence.until - by, PAST))
    return life._replace(fence=fence, line=tuple((lease, max(until - by, PAST)) for lease, until in life.line))


def _sent(at: int, rates: Rates) -> int:
    """A renewal that was sent a lease ago allows nothing, as one that was sent earlier."""
    return max(at - rates.machine, -LEASE)


def _without(items: tuple[Any, ...], number: int) -> tuple[Any, ...]:
    return items[:number] + items[number + 1 :]


def _with_life(world: LeaseWorld, number: int, life: LeasedLife) -> LeaseWorld:
    return world._replace(lives=(*world.lives[:number], life, *world.lives[number + 1 :]))
