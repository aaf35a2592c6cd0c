"""Sends a `LeaseWorld` through every order of events, and checks what must hold in each state."""

from collections import deque

from tests.core import lease_world
from tests.core.lease_world import (
    LEASE,
    OTHER,
    Drift,
    LeaseMove,
    LeaseViolated,
    LeaseWorld,
    first_lease_world,
    moves,
)

Served = set[tuple[LeaseWorld, int | None]]
"""States from which the key is served if nothing more goes wrong, with the life that is to serve it."""
CALM_STEPS = 400
"""More than any way needs on which nothing goes wrong any more."""
ENOUGH = 400
"""What is left of a lease that a machine will renew in time, if nothing more goes wrong."""
FRESH = LEASE * 3 // 5
"""How long a life may serve whose lease has just been renewed, at least."""
CALM = [
    *("renew", "hear", "read_line", "expire", "see_forgotten", "give_up", "see_loss", "leave", "end_life"),
    *("join", "joined", "hand_back", "send", "tick"),
]
"""What happens as soon as it can, where nothing goes wrong any more."""


def next_lease_world(world: LeaseWorld, move: LeaseMove, drift: Drift) -> LeaseWorld:
    name, details = move
    reached: LeaseWorld = getattr(lease_world, name)(world, drift, *details)
    return reached


def serving(world: LeaseWorld) -> list[int]:
    """The lives, by their leases, that would serve the key if they were asked now."""
    lives = [life.fence.lease_id for life in world.lives if life.owns and life.fence.may_serve(0)]
    return [*lives, OTHER] if world.owner == OTHER else lives


def check(world: LeaseWorld) -> None:
    if len(serving(world)) > 1:
        raise LeaseViolated("one life serves a key", f"{serving(world)} would")
    if world.lease and not world.lease.is_lost and world.lease.serve_until < world.won:
        raise LeaseViolated("an answered renewal counts", f"until {world.lease.serve_until}, and not {world.won}")


def explore_leases(drift: Drift) -> int:
    """Visit every state that can be reached, breadth first; their number.

    Raises:
        LeaseViolated: a property does not hold; with the shortest path to it.
    """
    first = first_lease_world(drift)
    origins: dict[LeaseWorld, tuple[LeaseWorld, LeaseMove] | None] = {first: None}
    waiting, served = deque([first]), Served()
    while waiting:
        world, move = waiting.popleft(), None
        try:
            check(world)
            check_way_on(world, drift, served)
            for move in moves(world, drift):
                reached = next_lease_world(world, move, drift)
                if reached not in origins:
                    origins[reached] = world, move
                    waiting.append(reached)
        except LeaseViolated as violated:
            violated.add_note("\n".join([*_path_to(world, origins), str(move)]))
            raise
    return len(origins)


def _path_to(world: LeaseWorld, origins: dict[LeaseWorld, tuple[LeaseWorld, LeaseMove] | None]) -> list[str]:
    path: list[str] = []
    while origin := origins[world]:
        world, (name, details) = origin
        path.append(f"{name}{details}")
    return path[::-1]


def check_way_on(world: LeaseWorld, drift: Drift, served: Served) -> None:
    """Where nothing goes wrong any more the key is served; by the same life, if its lease can still be renewed."""
    calm = calmed(world)
    lease = calm.lease
    stays = lease is not None and not lease.is_lost and lease.lease_id == calm.stored == calm.owner
    expected = calm.owner if stays and calm.left >= ENOUGH else None
    way: list[tuple[LeaseWorld, int | None]] = []
    while (calm, expected) not in served:
        check(calm)
        way.append((calm, expected))
        if is_served(calm, expected):
            break
        if len(way) > CALM_STEPS:
            raise LeaseViolated("there is a way on", f"not served: {calm}")
        calm = next_lease_world(calm, _calm_move(calm, drift), drift)
    served.update(way)


def is_served(world: LeaseWorld, by: int | None) -> bool:
    """By the life whose lease that is, renewed anew; else by any life, and the machine has a lease again if it may."""
    if by is not None:
        return serving(world) == [by] and world.won >= FRESH
    has_lease = world.lease is not None and world.lease.lease_id == world.stored
    return bool(serving(world)) and (has_lease or not world.joins)


def calmed(world: LeaseWorld) -> LeaseWorld:
    """All processes go on, and the store is up."""
    if world.is_down:
        world = lease_world.go_down_or_up(world, Drift(lease_world.Rates(0, 0, 0)))
    if not world.is_paused and not any(life.is_paused for life in world.lives):
        return world
    return world._replace(is_paused=False, lives=tuple(life._replace(is_paused=False) for life in world.lives))


def _calm_move(world: LeaseWorld, drift: Drift) -> LeaseMove:
    return min((move for move in moves(world, drift) if move[0] in CALM), key=lambda move: CALM.index(move[0]))
