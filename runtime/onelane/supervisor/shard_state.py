"""The states of one shard under its supervisor, and the events that change them. Pure: `supervised_shard` applies it.

    STARTING ──BECAME_READY──▶ READY ──DRAIN_ASKED──▶ DRAINING ──DRAIN_DONE──▶ DRAINED
                               ▲  │                                               │
                               │  └──RESTART_ASKED──▶ RESTART_DRAINING            │ RESTART_ASKED
                               │                             │ DRAIN_DONE         │
                               │                             ▼                    │
                               │                      RESTART_STOPPING ◀──────────┘
                               │                             │ ENDED
                               │                             ▼
                               ├─────BECAME_READY──── RESTART_STARTING
                               │
                               └─────BECAME_READY──── RECOVERING ◀──ENDED── READY, DRAINING, DRAINED,
                                                                            RESTART_DRAINING, RESTART_STARTING,
                                                                            RECOVERING

A first start that fails (ENDED in STARTING) stops the shard, and with it the app. APP_STOPPED leads from every state to
STOPPED, which is final; so does ENDED from LEAVING, to which LEAVE_ASKED leads from every other state. A restart has
states of its own, because the end of its process is no crash: it is not counted, and no back-off delays the next
process.
"""

from collections.abc import Mapping
from enum import Enum, auto


class ShardState(Enum):
    """The state of a shard. Status, page and `onelane top` show its `label`, which several states share; or
    `unresponsive`, where its lane does not tick (`liveness`)."""

    STARTING = auto()
    """Its first process has been launched and was never ready."""
    READY = auto()
    DRAINING = auto()
    """It takes no new call and finishes its calls under way."""
    DRAINED = auto()
    """It has finished its calls, and waits to be restarted."""
    RESTART_DRAINING = auto()
    """As DRAINING; the process is stopped after it."""
    RESTART_STOPPING = auto()
    """Its process has been sent `stop`."""
    RESTART_STARTING = auto()
    """The process that follows a restart is not ready yet."""
    RECOVERING = auto()
    """Its process has ended by itself: the back-off, and the new process until that is ready."""
    LEAVING = auto()
    """The placement has it no more: its process finishes its calls and ends, and none follows."""
    STOPPED = auto()

    @property
    def label(self) -> str:
        return _LABELS[self]


class ShardEvent(Enum):
    """An event that changes the state of a shard."""

    BECAME_READY = auto()
    """The process reports that it serves."""
    DRAIN_ASKED = auto()
    RESTART_ASKED = auto()
    DRAIN_DONE = auto()
    """Its calls have finished, or the time that they had is over."""
    ENDED = auto()
    """The process has ended while the app runs."""
    APP_STOPPED = auto()
    """The process has ended because the app stops."""
    LEAVE_ASKED = auto()
    """A change of placement is over, or has been given up, which leaves this shard out."""


_LABELS: Mapping[ShardState, str] = {
    ShardState.STARTING: "starting",
    ShardState.READY: "ready",
    ShardState.DRAINING: "draining",
    ShardState.DRAINED: "drained",
    ShardState.RESTART_DRAINING: "draining",
    ShardState.RESTART_STOPPING: "restarting",
    ShardState.RESTART_STARTING: "starting",
    ShardState.RECOVERING: "restarting",
    ShardState.LEAVING: "leaving",
    ShardState.STOPPED: "stopped",
}
REPORTING = frozenset(
    {
        ShardState.READY,
        ShardState.DRAINING,
        ShardState.RESTART_DRAINING,
        ShardState.DRAINED,
        ShardState.LEAVING,
    }
)
"""States in which the process answers a request for a report."""
RESTARTING = frozenset({ShardState.RESTART_DRAINING, ShardState.RESTART_STOPPING, ShardState.RESTART_STARTING})
"""States of a restart that was asked for."""
NOT_YET_READY = frozenset({ShardState.STARTING, ShardState.RESTART_STARTING, ShardState.RECOVERING})
"""States in which the process, where there is one, is not ready yet: it reads no order, and has no call."""

TRANSITIONS: Mapping[ShardState, Mapping[ShardEvent, ShardState]] = {
    ShardState.STARTING: {
        ShardEvent.BECAME_READY: ShardState.READY,
        ShardEvent.ENDED: ShardState.STOPPED,
        ShardEvent.APP_STOPPED: ShardState.STOPPED,
        ShardEvent.LEAVE_ASKED: ShardState.LEAVING,
    },
    ShardState.READY: {
        ShardEvent.DRAIN_ASKED: ShardState.DRAINING,
        ShardEvent.RESTART_ASKED: ShardState.RESTART_DRAINING,
        ShardEvent.ENDED: ShardState.RECOVERING,
        ShardEvent.APP_STOPPED: ShardState.STOPPED,
        ShardEvent.LEAVE_ASKED: ShardState.LEAVING,
    },
    ShardState.DRAINING: {
        ShardEvent.DRAIN_DONE: ShardState.DRAINED,
        ShardEvent.ENDED: ShardState.RECOVERING,
        ShardEvent.APP_STOPPED: ShardState.STOPPED,
        ShardEvent.LEAVE_ASKED: ShardState.LEAVING,
    },
    ShardState.DRAINED: {
        ShardEvent.RESTART_ASKED: ShardState.RESTART_STOPPING,
        ShardEvent.ENDED: ShardState.RECOVERING,
        ShardEvent.APP_STOPPED: ShardState.STOPPED,
        ShardEvent.LEAVE_ASKED: ShardState.LEAVING,
    },
    ShardState.RESTART_DRAINING: {
        ShardEvent.DRAIN_DONE: ShardState.RESTART_STOPPING,
        # A crash, as any other: the new process has the fresh code as well.
        ShardEvent.ENDED: ShardState.RECOVERING,
        ShardEvent.APP_STOPPED: ShardState.STOPPED,
        ShardEvent.LEAVE_ASKED: ShardState.LEAVING,
    },
    ShardState.RESTART_STOPPING: {
        ShardEvent.ENDED: ShardState.RESTART_STARTING,
        ShardEvent.APP_STOPPED: ShardState.STOPPED,
        ShardEvent.LEAVE_ASKED: ShardState.LEAVING,
    },
    ShardState.RESTART_STARTING: {
        ShardEvent.BECAME_READY: ShardState.READY,
        ShardEvent.ENDED: ShardState.RECOVERING,
        ShardEvent.APP_STOPPED: ShardState.STOPPED,
        ShardEvent.LEAVE_ASKED: ShardState.LEAVING,
    },
    ShardState.RECOVERING: {
        ShardEvent.BECAME_READY: ShardState.READY,
        ShardEvent.ENDED: ShardState.RECOVERING,
        ShardEvent.APP_STOPPED: ShardState.STOPPED,
        ShardEvent.LEAVE_ASKED: ShardState.LEAVING,
    },
    ShardState.LEAVING: {
        # It was starting when it was asked to leave.
        ShardEvent.BECAME_READY: ShardState.LEAVING,
        ShardEvent.ENDED: ShardState.STOPPED,
        ShardEvent.APP_STOPPED: ShardState.STOPPED,
    },
    ShardState.STOPPED: {},
}


def is_possible(state: ShardState, event: ShardEvent) -> bool:
    return event in TRANSITIONS[state]


def step(state: ShardState, event: ShardEvent) -> ShardState:
    """The state that follows.

    Raises:
        RuntimeError: the table has no such step; a bug of the caller.
    """
    if not is_possible(state, event):
        raise RuntimeError(f"event {event.name} is not possible for a shard in state {state.name}")
    return TRANSITIONS[state][event]
