"""What the page is told of a ring."""

from onelane.core.placement import Member, Placement
from onelane.supervisor.admin.view import RING_SLICES, ring

A, B = (Member(f"{name}/lobby-0", f"10.0.0.{n}:50150", "", n) for n, name in ((1, "a"), (2, "b")))


def test_a_ring_has_the_shares_of_the_shards_and_an_owner_for_each_slice() -> None:
    drawing = ring(Placement(7, (A, B), 512), [A.address, "10.0.0.9:1", B.address])
    assert sum(drawing["shares"]) == 1.0
    assert drawing["shares"][1] == 0.0
    assert len(drawing["slices"]) == RING_SLICES
    assert {*drawing["slices"]} == {0, 2}
    assert drawing["skew"] == 2 * max(drawing["shares"])


def test_what_shards_of_other_machines_own_has_no_index() -> None:
    drawing = ring(Placement(7, (A, B), 512), [A.address])
    assert 0.3 < drawing["shares"][0] < 0.7
    assert {*drawing["slices"]} == {0, None}
    assert drawing["skew"] == 2 * max(drawing["shares"][0], 1 - drawing["shares"][0])


def test_a_ring_without_owners_is_drawn_empty() -> None:
    assert ring(Placement(0, (), 512), [A.address]) == {"points": 512, "shares": [0.0], "skew": 1.0, "slices": []}
