"""The fence of a lane whose machine is a part of a cluster: until when it may serve keys (`core/lease`).

Past that time a call to a key of this shard is refused, UNAVAILABLE; memory is kept, and no connection is ended. Calls
to keys of other shards are sent on: their owners have fences of their own.
"""

from collections.abc import Callable
from typing import Any

from onelane.core.clock import boottime_clock
from onelane.core.lease import Fence
from onelane.core.placement import Member
from onelane.core.turns import Turn
from onelane.errors import NoLease
from onelane.lane.routing import Router
from onelane.lane.turn_queue import TurnKeeper
from onelane.server.call import Call

_UNKNOWN = Member("", "", "")


class LaneFence:
    """The fence of now, and the clock. Owned by one lane."""

    def __init__(self, shard: str, fence: Fence, *, now: Callable[[], float] | None = None) -> None:
        """now: CLOCK_BOOTTIME where it is None."""
        self._shard = shard
        self._fence = fence
        self._now = boottime_clock() if now is None else now

    @property
    def is_open(self) -> bool:
        """Whether a turn may begin, and an answer leave, at this moment."""
        # As `Fence.may_serve`, without a frame of its own: it is asked twice in each call.
        return self._now() < self._fence.until

    def check(self) -> None:
        """Raises:
        NoLease: the fence is closed.
        """
        if not self.is_open:
            raise NoLease(self._shard)

    def extend(self, fence: Fence) -> None:
        """The supervisor has told what its lease allows now."""
        self._fence = self._fence.extended(fence.lease_id, fence.until)


class FencedHomes(dict[str, Member | None]):
    """`Router.homes`, which is asked for each call with a key: the clock is looked at where this shard is the owner."""

    def __init__(self, router: Router, fence: LaneFence) -> None:
        super().__init__()
        self._router = router
        self._fence = fence

    def __getitem__(self, key: str) -> Member | None:
        """Raises:
        NoLease: this shard owns the key, and its fence is closed.
        """
        home = self.get(key, _UNKNOWN)
        if home is _UNKNOWN:
            home = self._router.find_home(key)
        if home is None and not self._fence.is_open:
            self._fence.check()
        return home


class FencedTurns:
    """A `TurnKeeper` before that of the durable state, if there is one: code begins no turn behind a closed fence."""

    def __init__(self, fence: LaneFence, inner: TurnKeeper | None) -> None:
        self._fence = fence
        self._inner = inner

    def start(self, call: Call, turn: Turn) -> None:
        """The lane looks at the clock when it resumes the call, which may be later."""
        if self._inner is None:
            call.proceed()
        else:
            self._inner.start(call, turn)

    async def prepare(self, turn: Turn) -> None:
        """Raises:
        NoLease: the fence is closed.
        """
        if self._inner is not None:
            await self._inner.prepare(turn)
        self._fence.check()

    def end_by_hand(self, turn: Turn, *, is_nested: bool) -> Any:
        return None if self._inner is None else self._inner.end_by_hand(turn, is_nested=is_nested)
