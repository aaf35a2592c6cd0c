"""The bound on what all connections of a shard hold: those that hold most let go."""

from hypothesis import given
from hypothesis import strategies as st
from onelane.wire.held_bytes import CONNECTION_BYTES, SHARD_BYTES, HeldBytes, fair_level

LIMIT, PER_CONNECTION = 800, 400


class Peer:
    """A connection that holds so many calls of 10 bytes each."""

    def __init__(self, *, trusted: bool = False) -> None:
        self.trusted = trusted
        self.held = 0
        self.reasons: list[str] = []

    def let_go(self, level: int, reason: str, *, keeps_oldest: bool) -> int:
        self.reasons.append(reason)
        self.held = max(level // 10 * 10, 10 if keeps_oldest else 0)
        return self.held


class Shard:
    def __init__(self) -> None:
        self.bytes = HeldBytes(limit=LIMIT, per_connection=PER_CONNECTION)

    def hold(self, peer: Peer, held: int) -> None:
        peer.held = held
        self.bytes.report(peer, held)


def test_a_connection_that_holds_too_much_lets_go_and_no_other() -> None:
    shard, heavy, light = Shard(), Peer(), Peer()
    shard.hold(light, 100)
    shard.hold(heavy, 410)
    assert (heavy.reasons, light.reasons) == ([CONNECTION_BYTES], [])
    assert heavy.held <= PER_CONNECTION
    assert shard.bytes.total == heavy.held + light.held


def test_where_the_shard_holds_too_much_the_heaviest_let_go_and_not_the_one_that_came_last() -> None:
    shard, heavy, light = Shard(), [Peer() for _ in range(2)], Peer()
    for peer in heavy:
        shard.hold(peer, 380)
    shard.hold(light, 100)
    assert light.reasons == []
    assert [peer.reasons for peer in heavy] == [[SHARD_BYTES]] * 2
    assert shard.bytes.total <= LIMIT


def test_a_siblings_connection_has_the_bound_of_the_shard_alone() -> None:
    shard, sibling = Shard(), Peer(trusted=True)
    shard.hold(sibling, 700)
    assert sibling.reasons == []
    shard.hold(sibling, 810)
    assert sibling.reasons == [SHARD_BYTES]


def test_a_connection_that_has_closed_holds_nothing() -> None:
    shard, peer = Shard(), Peer()
    shard.hold(peer, 300)
    shard.bytes.forget(peer)
    assert shard.bytes.total == 0
    shard.bytes.forget(peer)


def test_what_becomes_less_ends_no_call() -> None:
    shard, peer = Shard(), Peer()
    shard.hold(peer, 390)
    shard.hold(peer, 0)
    assert (peer.reasons, shard.bytes.total) == ([], 0)


@given(st.lists(st.integers(0, 1000)), st.integers(0, 5000))
def test_the_fair_level_is_the_largest_that_keeps_the_sum(amounts: list[int], limit: int) -> None:
    level = fair_level(amounts, limit)
    assert sum(min(amount, level) for amount in amounts) <= limit
    if sum(amounts) > limit:
        assert sum(min(amount, level + 1) for amount in amounts) > limit
