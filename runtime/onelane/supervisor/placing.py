"""Who decides on the placements of an app, as its supervisor sees it: that supervisor itself (`own_placing`), or the
coordinator of a cluster (`cluster_placing`)."""

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from onelane.config import App
from onelane.core.placement import Placement
from onelane.supervisor.change_trace import ChangeTrace
from onelane.supervisor.supervised_shard import Incarnation, SupervisedShard
from onelane.supervisor.target import AppTarget
from onelane.v1 import control_pb2

if TYPE_CHECKING:
    from onelane.core.machine_links import MachineLinks

CHANGE_MARGIN_S = 2.5
"""How long beyond `drain_s`, which is for the turns under way, a life may take for its part in a change."""


@dataclass(frozen=True, slots=True)
class Start:
    """By what a process begins that was launched."""

    placement: Placement
    change: control_pb2.Prepare | None = None
    """The change under way, where it has a part in that."""
    links: "MachineLinks | None" = None
    """To other machines."""
    identity_key: bytes = b""
    """In place of the supervisor's own. Never shown."""


@dataclass(frozen=True)
class ChangePlan:
    """A change of the shards, lives or pins of one app on this machine."""

    target: AppTarget
    joining: Sequence[SupervisedShard]
    leaving: Sequence[SupervisedShard]
    after: Placement
    """As far as this machine decides."""
    what: str
    """For people."""


class RunningMove(Protocol):
    """A change of placement that is under way."""

    @property
    def progress(self) -> Mapping[int, control_pb2.HandoffProgress]:
        """Life → how far it is."""

    @property
    def began_at(self) -> float:
        """By the monotonic clock."""

    @property
    def waits_for(self) -> frozenset[int]:
        """The lives that have not departed or arrived yet."""

    @property
    def names(self) -> Mapping[int, str]:
        """Life → its shard, of all that have a part in it."""


@dataclass(frozen=True, slots=True)
class ChangeElsewhere:
    """A change of placement under way that another machine has begun."""

    what: str
    """For people."""
    before: int
    """Its epochs."""
    after: int
    move: RunningMove


class PlacedApp(Protocol):
    """The app, as the one who decides on its placements sees it."""

    name: str
    settings: App
    placement: Placement
    """In force; its members of this machine have the paths of their sockets."""
    shards: list[SupervisedShard]
    """Those that the app has, by their index."""
    beside: list[SupervisedShard]
    """Those that are to join the placement, and those that have left it and have not ended."""

    stopping: anyio.Event
    """Set once the app stops."""

    @property
    def is_stopping(self) -> bool:
        """It starts and changes nothing any more."""

    def next_life(self) -> int:
        """The number of a new life, unique on this machine."""

    def begin_beside(self, shard: SupervisedShard) -> None:
        """Start a shard that joins the placement; appends it to `beside`."""

    async def retire(self, shard: SupervisedShard) -> None:
        """Have a shard that has left the placement finish its calls, and end it."""

    def start_soon(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Start a task."""


class SharedPins(Protocol):
    """The pins of an app that all machines of a cluster share: canonical key → name of the shard."""

    def current(self) -> Mapping[str, str]:
        """As of the last word from the store."""

    async def alter(self, key: str, shard: str) -> None:
        """Have a key owned by this shard, or by the ring where it is ""; returns once the placement has it so.

        Raises:
            NotChanged: there is no such shard, or no such pin; or the store does not answer.
        """


class Placing(Protocol):
    """See the module. All that is no coroutine only notes what has happened."""

    @property
    def running(self) -> RunningMove | None:
        """The change that is under way, and that this supervisor wants."""

    @property
    def elsewhere(self) -> ChangeElsewhere | None:
        """The change that is under way, where this machine has none under way."""

    @property
    def shared_pins(self) -> SharedPins | None:
        """None where pins are the app's own target."""

    def more_sockets(self, shard: SupervisedShard) -> Sequence[socket.socket]:
        """Listening sockets that a process of a shard inherits beside its own.

        Raises:
            OSError: no socket can be opened now.
        """

    def number(self, shard: SupervisedShard) -> int:
        """The number of the life that was launched for a shard, as far as it is known before it begins."""

    async def begin(self, shard: SupervisedShard, incarnation: Incarnation, dead_life: int) -> Start | None:
        """By what the process begins; None where it, or the app, has ended before that was known. dead_life: the one
        before it, of the same record; 0 for the first."""

    def became_ready(self, shard: SupervisedShard) -> None:
        """Its process serves."""

    def died(self, shard: SupervisedShard) -> None:
        """Its process has ended, by proof."""

    def reported(self, shard: SupervisedShard, message: control_pb2.ToSupervisor) -> None:
        """A life has `departed`, has `arrived`, or tells its `progress`."""

    def moves(self, plan: ChangePlan) -> bool:
        """Whether keys have other owners by this plan."""

    async def move(self, plan: ChangePlan, trace: ChangeTrace) -> Placement:
        """Have the keys moved, once the lives that join are ready; returns the placement in force.

        Raises:
            NotChanged: the app stops.
        """

    def over(self) -> None:
        """The app has taken over the outcome of the move, or it was given up."""

    async def tell(self) -> None:
        """Tell the lives the placement in force, after a move."""

    async def settle(self) -> None:
        """Wait until the shards of this machine own their keys."""

    @property
    def owns_keys(self) -> bool:
        """Whether the placement in force has shards of this machine."""

    async def leave(self) -> None:
        """The app stops, or is to: have its keys go elsewhere, where there is another place for them, and as far as
        time is. It may be called again meanwhile."""
