"""Calls that are held during a change of placement: for the state of their key, or for a placement that is on its way.

Promises: each is held until it is released or withdrawn, whichever comes first; those of one key are released in the
order in which they came. They count as calls in progress, which bounds them.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any, TypeVar

Thing = TypeVar("Thing", str, int)
HeldCalls = OrderedDict[Any, float]
"""Those that wait for one thing, in the order of their coming, and when they came, by `perf_counter`."""


class Arrivals:
    """See the module. Owned by one lane."""

    def __init__(self, release: Callable[[Any], None]) -> None:
        """release: has one of those that are held go on, soon."""
        self._release = release
        self.paused: Callable[[float], object] | None = None
        """Called with the seconds for which the first one was held that has waited for a key."""
        self._of_key: dict[str, HeldCalls] = {}
        self._of_epoch: dict[int, HeldCalls] = {}
        """Epoch of a placement that is on its way → those that a sibling has sent on by it."""

    @property
    def count(self) -> int:
        """Calls, and code of the shard, that are held."""
        return sum(map(len, self._of_key.values())) + sum(map(len, self._of_epoch.values()))

    @property
    def keys(self) -> list[str]:
        """Those that calls are held for, in the order in which the first of each came."""
        return list(self._of_key)

    def hold_for_key(self, key: str, waiter: Any) -> None:
        self._of_key.setdefault(key, OrderedDict())[waiter] = perf_counter()

    def hold_for_epoch(self, epoch: int, waiter: Any) -> None:
        self._of_epoch.setdefault(epoch, OrderedDict())[waiter] = perf_counter()

    def withdraw(self, waiter: Any, *, key: str, epoch: int) -> None:
        """Hold it no more. epoch: that it was held for; 0 where it was held for its key."""
        if epoch:
            _remove(self._of_epoch, epoch, waiter)
        else:
            _remove(self._of_key, key, waiter)

    def arrived(self, keys: Iterable[str]) -> None:
        """The state of these keys is here."""
        if not self._of_key:
            return
        for key in keys:
            waiters = self._of_key.pop(key, None)
            if waiters:
                if self.paused is not None:
                    self.paused(perf_counter() - next(iter(waiters.values())))
                self._release_all(waiters)

    def placed(self, epoch: int) -> None:
        """The placement of this epoch is here, and with it all earlier ones."""
        for due in sorted(other for other in self._of_epoch if other <= epoch):
            self._release_all(self._of_epoch.pop(due))

    def all_arrived(self) -> None:
        """No key is on its way any more, or each of them is to be looked at anew."""
        self.arrived(list(self._of_key))

    def _release_all(self, waiters: HeldCalls) -> None:
        for waiter in waiters:
            self._release(waiter)

    async def wait(self, *, key: str, epoch: int = 0) -> None:
        """Hold the code that awaits this, as a call is held. epoch: of a placement to wait for; 0: for the key."""
        released = asyncio.get_running_loop().create_future()
        if epoch:
            self.hold_for_epoch(epoch, released)
        else:
            self.hold_for_key(key, released)
        try:
            await released
        finally:
            self.withdraw(released, key=key, epoch=epoch)


def _remove(held: dict[Thing, HeldCalls], thing: Thing, waiter: Any) -> None:
    waiters = held.get(thing)
    if waiters is not None:
        waiters.pop(waiter, None)
        if not waiters:
            del held[thing]
