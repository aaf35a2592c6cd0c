"""The lives of all apps of a supervisor, where its machine is a part of a cluster: they start under its lease, are told
until when they may serve, and end with it.

Promises: no process gets its setup without a lease; when `end` returns, no process of that lease runs any more. Such an
end is no crash of a shard: the next process starts under the next lease.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.abc

from onelane.cluster.control import fence_to_proto
from onelane.supervisor.launcher import RunningShard
from onelane.supervisor.supervised_shard import SupervisedShard
from onelane.v1 import control_pb2

if TYPE_CHECKING:
    from onelane.core.lease import Fence


class LeasedApp(Protocol):
    """An app, as its lives see it."""

    name: str

    @property
    def all_shards(self) -> list[SupervisedShard]:
        """With those that join or leave the placement."""


class LeasedLives:
    """See `supervisor.machine.MachineLives`. Owned by the supervisor."""

    def __init__(self, apps: Sequence[LeasedApp], start_soon: Callable[..., object]) -> None:
        """start_soon: starts a task: a coroutine function, and its arguments."""
        self._apps = apps
        self._start_soon = start_soon
        self._fence: Fence | None = None
        self._granted = anyio.Event()

    # For the machine

    async def start(self, lease_id: int, until: float) -> None:
        """Let the lives of this lease start: they have been launched, and wait for their setup."""
        # Only with a cluster.
        from onelane.core.lease import Fence

        self._fence = Fence(lease_id, until)
        self._granted.set()

    def extend(self, lease_id: int, until: float) -> None:
        """Move the fences of the lives that were started under this lease."""
        if self._fence is None:
            return
        self._fence = self._fence.extended(lease_id, until)
        for shard in self._shards():
            self._start_soon(self.inform, shard)

    async def end(self, lease_id: int) -> None:
        """End the lives of this lease at once, also those that are being started; wait until their processes have
        ended."""
        self._fence, self._granted = None, anyio.Event()
        lives = [shard.incarnation for shard in self._shards() if shard.incarnation is not None and shard.is_alive]
        for life in lives:
            life.has_lost_its_lease = True
            life.running.kill()
        for life in lives:
            await life.running.wait()

    # For the apps

    async def may_start(self, running: RunningShard, stop: anyio.Event) -> bool:
        """Wait until there is a lease for a process that was launched; False where it ends before, or `stop` is set."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_after, running.wait, tasks.cancel_scope)
            tasks.start_soon(_cancel_after, stop.wait, tasks.cancel_scope)
            await self._granted.wait()
            tasks.cancel_scope.cancel()
        return self._fence is not None and not stop.is_set()

    def add_fence(self, setup: control_pb2.Setup) -> None:
        """Have the setup of a process say until when it may serve."""
        assert self._fence is not None, "no process starts without a lease"
        setup.fence.CopyFrom(fence_to_proto(self._fence))

    async def inform(self, shard: SupervisedShard) -> None:
        """Tell the present process of a shard until when it may serve. One that is not ready is told when it is."""
        if self._fence is not None and shard.is_up:
            await shard.send(control_pb2.ToShard(fence=fence_to_proto(self._fence)))

    def _shards(self) -> list[SupervisedShard]:
        return [shard for app in self._apps for shard in app.all_shards]


async def _cancel_after(wait: Callable[[], Awaitable[Any]], scope: anyio.CancelScope) -> None:
    await wait()
    scope.cancel()
