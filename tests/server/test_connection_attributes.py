"""CPython looks up the attributes of an instance fast where it has 30 at most; these are read for every call. An
instance of compiled code has none that are looked up."""

from typing import Any

from onelane.client.channel import dial

from tests.bounds import BOUND_S
from tests.servers import native
from tests.shard.parts import wired

FAST = 30


def looked_up(part: Any) -> int:
    return len(getattr(part, "__dict__", ()))


async def test_a_connection_and_its_listener_have_few_enough_attributes() -> None:
    async with native() as (address, listener), dial(address) as channel:
        assert await channel.unary_unary("/t.T/Echo")(b"x", timeout=BOUND_S) == b"x"
        (connection,) = listener._connections
        assert max(looked_up(part) for part in (connection, connection.wire, listener)) <= FAST


async def test_a_lane_has_few_enough_attributes() -> None:
    parts, _ = wired()
    assert looked_up(parts.lane) <= FAST
