"""What is held in a change of placement is released in its order, once, or withdrawn."""

import asyncio

import pytest
from onelane.lane.arrivals import Arrivals

from tests.bounds import BOUND_S


@pytest.fixture
def released() -> list[str]:
    return []


@pytest.fixture
def arrivals(released: list[str]) -> Arrivals:
    return Arrivals(released.append)


def test_calls_of_a_key_go_on_in_their_order_once_its_state_is_here(arrivals: Arrivals, released: list[str]) -> None:
    for call in ("first", "second"):
        arrivals.hold_for_key("k", call)
    arrivals.hold_for_key("other", "third")
    arrivals.arrived(["k", "unknown"])
    assert (released, arrivals.count) == (["first", "second"], 1)
    arrivals.arrived(["k"])
    assert released == ["first", "second"]


def test_a_placement_releases_all_that_were_sent_by_it_or_by_an_earlier_one(
    arrivals: Arrivals, released: list[str]
) -> None:
    for epoch in (9, 8, 10):
        arrivals.hold_for_epoch(epoch, f"by {epoch}")
    arrivals.placed(9)
    assert (released, arrivals.count) == (["by 8", "by 9"], 1)


@pytest.mark.parametrize("epoch", [0, 8])
def test_a_call_that_is_withdrawn_is_not_released(arrivals: Arrivals, released: list[str], epoch: int) -> None:
    for call in ("first", "second"):
        if epoch:
            arrivals.hold_for_epoch(epoch, call)
        else:
            arrivals.hold_for_key("k", call)
    arrivals.withdraw("first", key="k", epoch=epoch)
    arrivals.withdraw("first", key="k", epoch=epoch)
    arrivals.placed(8)
    arrivals.all_arrived()
    assert (released, arrivals.count) == (["second"], 0)


@pytest.mark.parametrize("epoch", [0, 8])
async def test_code_that_waits_is_held_no_longer_once_it_is_cancelled(epoch: int) -> None:
    arrivals = Arrivals(lambda future: future.set_result(None))
    waiting = [asyncio.ensure_future(arrivals.wait(key="k", epoch=epoch)) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    assert arrivals.count == 1
    arrivals.placed(8)
    arrivals.all_arrived()
    await asyncio.wait_for(waiting[1], BOUND_S)
    assert arrivals.count == 0
