"""A shard in its supervisor: the record that outlives crashes, and one incarnation for each of its processes.

Each process is a life with a number of its own. Those of one record follow each other at one socket for siblings. A
life that replaces another one in a change of placement has a record of its own, which lives beside the old one.
"""

import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

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
    received: ReportSequence
    deferred: list[control_pb2.ToShard] = field(default_factory=list)
    """Messages that it is sent once it is ready."""
    drained: anyio.Event = field(default_factory=anyio.Event)
    """It has reported that its calls have finished, or has ended."""
    ended: anyio.Event = field(default_factory=anyio.Event)
    is_ready: bool = False
    """It has been."""
    has_lost_its_lease: bool = False
    """It was ended for that: see `leased_lives`."""
    start: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    """Its start, which has a deadline."""

    async def send(self, message: control_pb2.ToShard) -> None:
        """Send a message over the control line; dropped where the shard is gone, or stands still since it began."""
        with anyio.move_on_after(MAKE_ROOM_S):
            await self.running.control.send(message)

    async def deliver(self, message: control_pb2.ToShard) -> None:
        """As `send`; but a process that is not ready yet gets the message once it is, however long that takes. Messages
        come in the order in which they are delivered."""
        if self.is_ready and not self.deferred:
            await self.send(message)
        else:
            self.deferred.append(message)

    async def send_deferred(self) -> None:
        """It is ready: send it what came for it meanwhile, and while that is sent."""
        while self.deferred:
            await self.send(self.deferred[0])
            self.deferred.pop(0)

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
    link: socket.socket | None = None
    """Its listening socket for the shards of other machines, in a cluster."""
    link_address: str = ""
    """Of that: see `core.machine_links.LinkAddress`."""
    stands_in: bool = False
    """It has the place of a shard of another machine, which was given up, until the change under way is over."""
    ready: anyio.Event = field(default_factory=anyio.Event)
    """Set once the shard is ready, when a start fails, and when it stops for good; a restart replaces the event."""
    ended: anyio.Event = field(default_factory=anyio.Event)
    """It has stopped for good: no process of it runs, and none follows."""
    fault: str = ""
    """Why its first start has failed."""
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
    def is_alive(self) -> bool:
        """A process of it runs."""
        return self.incarnation is not None and not self.incarnation.ended.is_set()

    @property
    def is_up(self) -> bool:
        """A process of it runs, and has been ready."""
        return self.incarnation is not None and self.is_alive and self.incarnation.is_ready

    @property
    def is_leaving(self) -> bool:
        """The placement has it no more, and its process ends."""
        return self.state is ShardState.LEAVING

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

    def begin(self, running: RunningShard, life: int) -> Incarnation:
        """A process has been launched, which is this life of the shard."""
        self.member = replace(self.member, life=life)
        self.incarnation = Incarnation(running, ReportSequence(life))
        return self.incarnation

    def renumber(self, life: int) -> None:
        """The process that has begun is this life of the shard; it has not reported yet."""
        assert self.incarnation is not None
        self.member = replace(self.member, life=life)
        self.incarnation.received = ReportSequence(life)

    def listen(self, sockets: tuple[socket.socket, ...], siblings_path: ListeningPath) -> None:
        """Have these sockets, the last of which is that for siblings, inherited by every process."""
        self.sockets, self.siblings_path = sockets, siblings_path

    def restore_path(self) -> None:
        """Before a launch: listen anew for siblings where the path of their socket was removed.

        Raises:
            OSError: see `unix_sockets.listening`.
        """
        if self.siblings_path is not None and not self.siblings_path.is_in_place:
            *others, replaced = self.sockets
            self.sockets = (*others, self.siblings_path.listen_again())
            replaced.close()

    def take_over_from(self, replaced: "SupervisedShard | None") -> None:
        """Count on from the record of the life that this one replaces, if there is one."""
        if replaced is not None:
            self.restarts += replaced.restarts
            self.stalls.extendleft(reversed(replaced.stalls))

    def close_siblings(self) -> None:
        """Close the sockets for siblings, after the end."""
        if self.siblings_path is not None:
            self.sockets[-1].close()
        if self.link is not None:
            self.link.close()

    async def send_deferred(self) -> None:
        """The present incarnation is ready: send it what came for it meanwhile, in order."""
        if self.incarnation is not None:
            await self.incarnation.send_deferred()

    async def send(self, message: control_pb2.ToShard) -> None:
        """Send a message to the present incarnation, if there is one."""
        if self.incarnation is not None:
            await self.incarnation.send(message)
