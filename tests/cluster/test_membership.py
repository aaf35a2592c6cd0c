"""Every membership keeps the same contract."""

from collections.abc import Callable

import pytest
from onelane.cluster.membership import Membership
from onelane.cluster.membership.static import StaticMembership
from onelane.cluster.membership.supervised import SupervisedMembership
from onelane.core.placement import Member, Placement

A, B = Member("a", "127.0.0.1:1", "a.sock"), Member("b", "127.0.0.1:2", "b.sock")
FIRST = Placement(5, (A,))


@pytest.fixture(params=[StaticMembership, SupervisedMembership])
def membership(request: pytest.FixtureRequest) -> Membership:
    make: Callable[[Placement], Membership] = request.param
    return make(FIRST)


async def test_the_first_view_comes_at_once(membership: Membership) -> None:
    assert await anext(membership.watch()) == FIRST


async def test_several_may_watch(membership: Membership) -> None:
    assert [await anext(membership.watch()) for _ in range(3)] == [FIRST] * 3


async def test_an_older_placement_is_never_seen(membership: Membership) -> None:
    membership.offer(Placement(4, (A, B)))
    assert await anext(membership.watch()) == FIRST


async def test_the_supervisors_newer_placement_is_followed() -> None:
    membership = SupervisedMembership(FIRST)
    views = membership.watch()
    await anext(views)
    for epoch in (6, 7, 6):
        membership.offer(Placement(epoch, (A, B)))
    assert (await anext(views)).epoch == 7
