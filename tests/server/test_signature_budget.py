"""A flood of tokens that fail costs a bounded number of checks, and leaves some to others."""

import pytest
from onelane.server import signature_budget
from onelane.server.signature_budget import CHECK_BURST, FAILURE_BURST, MAX_ADDRESSES, SignatureBudget, network_of

EVE, ANN = "ipv4:10.0.0.1:1", "ipv4:10.0.0.2:1"


def flood(budget: SignatureBudget, peer: str, count: int, now: float) -> int:
    """The checks that so many forged tokens of one client get."""
    checked = 0
    for _ in range(count):
        if budget.take(peer, now):
            checked += 1
            budget.note_failure(peer, now)
    return checked


def test_an_address_whose_tokens_fail_gets_no_more_checks_and_others_do() -> None:
    budget = SignatureBudget(100.0, 0.0)
    assert flood(budget, EVE, 10_000, 0.0) == FAILURE_BURST
    assert flood(budget, f"{EVE}2", 10, 0.0) == 0
    assert budget.take(ANN, 0.0)


def test_failures_are_forgiven_in_time() -> None:
    budget = SignatureBudget(100.0, 0.0)
    flood(budget, EVE, 100, 0.0)
    assert flood(budget, EVE, 100, 1.0) == signature_budget.FAILURES_PER_S


def test_many_addresses_together_get_so_many_checks_a_second() -> None:
    budget = SignatureBudget(100.0, 0.0)
    checked = sum(flood(budget, f"ipv4:10.{n // 256}.{n % 256}.1:1", 1, 1.0) for n in range(3000))
    assert checked == CHECK_BURST
    assert not budget.take(ANN, 1.0)
    assert budget.take(ANN, 1.01)


def test_the_addresses_that_are_remembered_are_bounded() -> None:
    budget = SignatureBudget(100.0, 0.0)
    for number in range(MAX_ADDRESSES + 10):
        budget.note_failure(f"ipv4:{number}:1", 0.0)
    assert len(budget._failures) == MAX_ADDRESSES


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        ("ipv4:1.2.3.4:5", "ipv4:1.2.3.4"),
        ("ipv6:[2001:db8:1:2:3:4:5:6]:7", "2001:db8:1:2::/64"),
        ("ipv6:%5B2001:db8:1:2:9:9:9:9%5D:7", "2001:db8:1:2::/64"),
        ("ipv6:[fe80::1%25eth0]:7", "fe80::/64"),
        ("ipv6:odd:7", "ipv6:odd"),
        ("unix:", "unix"),
        ("lane", "lane"),
    ],
)
def test_a_client_is_known_by_its_network(peer: str, network: str) -> None:
    assert network_of(peer) == network
