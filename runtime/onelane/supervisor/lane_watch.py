"""Looks at the lanes of one app, and acts on what it finds: see `liveness`."""

import logging
import time
from collections.abc import Callable, Sequence

import anyio

from onelane.config import App
from onelane.supervisor.liveness import LATE, Finding, looks_of
from onelane.supervisor.shard_state import REPORTING, ShardState
from onelane.supervisor.supervised_shard import SupervisedShard
from onelane.v1 import control_pb2

log = logging.getLogger("onelane.supervisor")
SIGN_OF_LIFE = 2**64 - 1
"""The number of a request for a report by which a lane only shows that it ticks."""
SEND_S = 0.05
"""How long it waits for room on the control line of a shard whose lane may not tick."""

NOBODY_AWAY = control_pb2.ToShard(away=control_pb2.Away())


class LaneWatch:
    """See the module. Owned by the app's supervisor."""

    def __init__(
        self,
        shards: Sequence[SupervisedShard],
        beside: Sequence[SupervisedShard],
        settings: App,
        *,
        is_placed: Callable[[SupervisedShard], bool],
    ) -> None:
        """shards: those of the app, as they change. beside: those that join it or leave it; siblings send nothing to
        them by the names of the others. is_placed: whether the placement has a shard."""
        self._shards = shards
        self._beside = beside
        self._is_placed = is_placed
        self._looks = looks_of(settings.unresponsive_s, settings.replace_stalled_s if settings.stall_s else None)
        self._unresponsive_s = settings.unresponsive_s
        self._lost_at: dict[str, float] = {}
        """Name of an unresponsive shard → when it became so."""
        self._told = NOBODY_AWAY

    async def run(self) -> None:
        """Look at every lane regularly, until cancelled."""
        interval_s = self._looks.interval_s
        looked_at = time.monotonic()
        while interval_s:
            await anyio.sleep(interval_s)
            now = time.monotonic()
            await self._look(now, is_late=now - looked_at > LATE * interval_s)
            looked_at = now

    async def inform(self, shard: SupervisedShard) -> None:
        """Tell a shard that has just become ready which of its siblings serve no calls."""
        if self._told != NOBODY_AWAY:
            await shard.send(self._told)

    async def tell(self) -> None:
        """Tell every shard which of its siblings serve no calls, where that has changed."""
        message = self._away()
        if message == self._told:
            return
        self._told = message
        for shard in (*self._shards, *self._beside):
            if shard.state in REPORTING and shard.liveness.is_responsive:
                await _send_soon(shard, message)

    async def _look(self, now: float, *, is_late: bool) -> None:
        for shard in (*self._shards, *self._beside):
            if shard.state in REPORTING and shard.incarnation is not None:
                lacks_cpu = shard.liveness.is_silent and shard.incarnation.running.lacks_cpu()
                finding = shard.liveness.look(self._looks, is_late=is_late, lacks_cpu=lacks_cpu)
                await self._act(shard, finding, now)
        for shard in self._shards:
            if shard.member.name in self._lost_at and not shard.is_unresponsive:
                self._note_return(shard, now)
        for name in set(self._lost_at) - {shard.member.name for shard in self._shards}:
            del self._lost_at[name]
        await self.tell()

    async def _act(self, shard: SupervisedShard, finding: Finding, now: float) -> None:
        name = shard.member.name
        if finding is Finding.ASK:
            await _send_soon(shard, control_pb2.ToShard(collect=SIGN_OF_LIFE))
        elif finding is Finding.LOST:
            if shard in self._shards:
                self._lost_at[name] = now
            log.error("shard.unresponsive shard=%s pid=%d silent_s=%g", name, shard.pid, self._unresponsive_s)
        elif finding is Finding.HUNG and shard.incarnation is not None:
            shard.incarnation.running.end_hung()

    def _note_return(self, shard: SupervisedShard, now: float) -> None:
        """A shard is not unresponsive any more: its lane ticks again, or its process has ended, which is told apart."""
        after_s = now - self._lost_at.pop(shard.member.name)
        if shard.state in REPORTING:
            log.warning("shard.responsive shard=%s after_s=%.1f", shard.member.name, after_s)

    def _away(self) -> control_pb2.ToShard:
        """The message that tells a shard which of its siblings serve no calls."""
        drained = [
            shard.member.name for shard in self._shards if shard.state is ShardState.DRAINED and self._is_placed(shard)
        ]
        return control_pb2.ToShard(away=control_pb2.Away(unresponsive=self._lost_at, drained=drained))


async def _send_soon(shard: SupervisedShard, message: control_pb2.ToShard) -> None:
    """Send a message without waiting for long: a process that is stopped does not empty its line."""
    with anyio.move_on_after(SEND_S):
        await shard.send(message)
