"""A shard in its supervisor: the record that outlives restarts, and one incarnation for each of its processes."""

import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio

from onelane.core.placement import Member
from onelane.server.unix_sockets import ListeningPath
from onelane.supervisor.launcher import RunningShard
from onelane.supervisor.liveness import Liveness
from onelane.supervisor.shard_state import REPORTING, ShardEvent, ShardState, step
from onelane.telemetry.collector.sequence import ReportSequence
from onelane.telemetry.stalls import Stall
from onelane.v1 import control_pb2

MAKE_ROOM_S = 1.0
"""How long a shard may take to make room for a message: no shard that stands still holds up what is done for others."""
LAST_STALLS = 5
"""Stalls of a shard that are kept for its status."""


@dataclass
class Incarnation:
    """One run of a shard, from its launch to its end."""

    running: RunningShard
    received: ReportSequence = field(default_factory=ReportSequence)
    drained: anyio.Event = field(default_factory=anyio.Event)
    """It has reported that its calls have finished, or has ended."""
    ended: anyio.Event = field(default_factory=anyio.Event)
    is_ready: bool = False
    """It has been."""
    start: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    """Its start, which has a deadline."""

    async def send(self, message: control_pb2.ToShard) -> None:
        """Send a message over the control line; dropped where the shard is gone, or stands still since it began."""
        with anyio.move_on_after(MAKE_ROOM_S):
            await self.running.control.send(message)

    def kill(self) -> None:
        """End it at once, and wake the tasks that wait for its drain or its end."""
        self.running.kill()
        self.drained.set()
        self.ended.set()


@dataclass
class SettingsProgress:
    """How far a shard is with new settings of its services."""

    generation: int = 0
    """The generation that it uses."""
    answers: dict[int, str] = field(default_factory=dict)
    """Generation → the shard's objection to it; "" where the settings fit."""
    changed: anyio.Event = field(default_factory=anyio.Event)
    """Set at the next answer, commit or change of the shard's state, and then replaced by a new event."""

    def wake(self) -> None:
        """Wake the tasks that wait for `changed`."""
        changed, self.changed = self.changed, anyio.Event()
        changed.set()


@dataclass
class SupervisedShard:
    """One shard, over all its incarnations."""

    member: Member
    index: int
    state: ShardState = ShardState.STARTING
    """Changed by `follow` alone."""
    incarnation: Incarnation | None = None
    """The last one launched; None before the first."""
    sockets: Sequence[socket.socket] = ()
    """Its listening sockets, held by the supervisor, so that connections queue while it restarts; none where its
    listener binds them itself."""
    siblings_path: ListeningPath | None = None
    """Of the last of its sockets, to which its siblings connect; None where its listener binds it itself."""
    ready: anyio.Event = field(default_factory=anyio.Event)
    """Set once the shard is ready, when a start fails, and when it stops for good; a restart replaces the event."""
    settings: SettingsProgress = field(default_factory=SettingsProgress)
    collected: dict[int, anyio.Event] = field(default_factory=dict)
    """Number of a request for a report → set once the report has come, or will not."""
    liveness: Liveness = field(default_factory=Liveness)
    """Of the present incarnation's lane."""
    pid: int = 0
    restarts: int = 0
    """Crashes that were followed by a restart; restarts that were asked for do not count."""
    keyed: dict[str, int] = field(default_factory=dict)
    """Keyed dict → how many keys it holds, as last reported."""
    stalls: deque[Stall] = field(default_factory=lambda: deque(maxlen=LAST_STALLS))
    """The last stalls, of all incarnations."""

    @property
    def is_unresponsive(self) -> bool:
        """Its process runs, and its lane does not tick."""
        return self.state in REPORTING and not self.liveness.is_responsive

    @property
    def is_ready(self) -> bool:
        """It takes calls."""
        return self.state is ShardState.READY and self.liveness.is_responsive

    @property
    def label(self) -> str:
        """Its state, for status, page and `onelane top`."""
        return "unresponsive" if self.is_unresponsive else self.state.label

    def follow(self, event: ShardEvent) -> None:
        """Change the state by the table of transitions, and wake the tasks that wait for an answer or a report of this
        shard: in another state it may never come.

        Raises:
            RuntimeError: the table does not have this event for the present state.
        """
        self.state = step(self.state, event)
        self.settings.wake()
        if self.state not in REPORTING:
            for collected in self.collected.values():
                collected.set()

    def restore_path(self) -> None:
        """Before a launch: listen anew for siblings where the path of their socket was removed.

        Raises:
            OSError: see `unix_sockets.listening`.
        """
        if self.siblings_path is not None and not self.siblings_path.is_in_place:
            *others, replaced = self.sockets
            self.sockets = (*others, self.siblings_path.listen_again())
            replaced.close()

    async def send(self, message: control_pb2.ToShard) -> None:
        """Send a message to the present incarnation, if there is one."""
        if self.incarnation is not None:
            await self.incarnation.send(message)
