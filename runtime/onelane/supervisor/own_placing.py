"""A supervisor that decides on the placements of an app by itself: see `placing.Placing`."""

import logging
import socket
import time
from collections.abc import Sequence
from dataclasses import replace

from onelane.cluster.control import placement_to_proto
from onelane.core.placement import Placement
from onelane.supervisor.change_trace import ChangeTrace
from onelane.supervisor.placing import CHANGE_MARGIN_S, ChangePlan, PlacedApp, Start
from onelane.supervisor.running_change import RunningChange
from onelane.supervisor.supervised_shard import Incarnation, SupervisedShard
from onelane.supervisor.target import NotChanged
from onelane.v1 import control_pb2

log = logging.getLogger("onelane.supervisor")


class OwnPlacing:
    """See the module. Owned by the app's supervisor."""

    def __init__(self, app: PlacedApp) -> None:
        self._app = app
        self._running: RunningChange | None = None

    @property
    def running(self) -> RunningChange | None:
        return self._running

    @property
    def elsewhere(self) -> None:
        return None

    @property
    def shared_pins(self) -> None:
        return None

    def more_sockets(self, shard: SupervisedShard) -> Sequence[socket.socket]:
        return ()

    def number(self, shard: SupervisedShard) -> int:
        first_life = shard.member.life
        return first_life if shard.incarnation is None and first_life else self._app.next_life()

    async def begin(self, shard: SupervisedShard, incarnation: Incarnation, dead_life: int) -> Start | None:
        self._renumber(shard)
        change = None if self._running is None else self._running.launched(dead_life, shard.member)
        return Start(self._placement, change)

    @property
    def _placement(self) -> Placement:
        """By which a process begins that is launched now."""
        return self._running.after if self._running is not None and self._running.is_over else self._app.placement

    def _renumber(self, shard: SupervisedShard) -> None:
        """Have the placement name the life of now of a shard. It is no change of placement: the socket is the same."""
        placement = self._app.placement
        members = tuple(shard.member if m.socket == shard.member.socket else m for m in placement.members)
        self._app.placement = replace(placement, members=members)

    def became_ready(self, shard: SupervisedShard) -> None:
        pass

    def died(self, shard: SupervisedShard) -> None:
        if self._running is not None:
            self._running.died(shard.member.life)

    def reported(self, shard: SupervisedShard, message: control_pb2.ToSupervisor) -> None:
        change, life = self._running, shard.member.life
        if change is None:
            return
        match message.WhichOneof("kind"):
            case "departed":
                change.departed(life, message.departed)
            case "arrived":
                change.arrived(life, message.arrived)
            case "progress":
                change.progressed(life, message.progress)

    def moves(self, plan: ChangePlan) -> bool:
        return _owners(plan.after) != _owners(self._app.placement)

    async def move(self, plan: ChangePlan, trace: ChangeTrace) -> Placement:
        app = self._app
        members = {shard.index: shard.member for shard in (*app.shards, *plan.joining)}
        # A life may have followed another one meanwhile.
        after = replace(plan.after, members=tuple(members[index] for index in plan.target.placed))
        shards = [*app.shards, *plan.joining]
        limit_s = app.settings.drain_s + CHANGE_MARGIN_S
        running = self._running = RunningChange(app.placement, after, shards, trace, limit_s=limit_s)
        log.info("change.begun app=%s epoch=%d what=%s", app.name, after.epoch, plan.what)
        placement = await running.run()
        seconds = time.monotonic() - running.began_at
        log.info("change.over app=%s epoch=%d seconds=%.3f", app.name, after.epoch, seconds)
        if app.is_stopping:
            # It was over since the lives have ended.
            raise NotChanged(f"{app.name} stops")
        return placement

    def over(self) -> None:
        self._running = None

    async def tell(self) -> None:
        message = control_pb2.ToShard(placement=placement_to_proto(self._app.placement))
        for shard in (*self._app.shards, *self._app.beside):
            if shard.incarnation is not None and shard.is_alive:
                await shard.incarnation.deliver(message)

    async def settle(self) -> None:
        pass

    @property
    def owns_keys(self) -> bool:
        return True

    async def leave(self) -> None:
        pass


def _owners(placement: Placement) -> tuple[set[tuple[str, str]], dict[str, str]]:
    """What decides which life owns a key."""
    return {(member.name, member.socket) for member in placement.members}, dict(placement.pins)
