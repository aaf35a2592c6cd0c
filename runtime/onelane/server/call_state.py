"""The states of a call, from its arrival on a lane to its outcome.

    ARRIVED ──begin──▶ RUNNING ──end──▶ DONE
       │  ╲               ▲               ▲
       │   ╲wait          │begin          │
       │    ╲             │               │
       │     ▶ WAITING ───┴─────end───────┤
       │        ╰wait╯ │forward           │
       │               ▼                  │
       └─forward─▶ FORWARDED ────end──────┘

            begin      wait      forward     end
ARRIVED     RUNNING    WAITING   FORWARDED   DONE   admitted or refused; its first message may still be to come
WAITING     RUNNING    WAITING   FORWARDED   DONE   for the turn of its key, or for its state to arrive
RUNNING     -          -         -           DONE   its handler runs here, or a task carries its streams to the owner
FORWARDED   -          -         -           DONE   the owner has it: one message and one answer, without a task
DONE        -          -         -           -      its outcome stands, and is never written again

An event that the table does not have is a defect of ours and raises `RuntimeError`. A step costs two attribute loads.
What a cancellation does, by its client or its deadline, follows from the state: WAITING, the call is withdrawn from the
queue; FORWARDED, the forward is cancelled; RUNNING, its task is; ARRIVED, it ends; DONE, nothing.
"""

from enum import Enum
from typing import Any

EVENTS = ("begin", "wait", "forward", "end")


class CallState(Enum):
    """See the module. `state.begin`, `.wait`, `.forward` and `.end` are the state that follows."""

    ARRIVED = "arrived"
    WAITING = "waiting"
    RUNNING = "running"
    FORWARDED = "forwarded"
    DONE = "done"

    def __getattr__(self, event: str) -> Any:
        # Reached only where the table has no such step.
        if event in EVENTS:
            raise RuntimeError(f"a call that is {self.value} cannot {event}")
        raise AttributeError(event)


ARRIVED, WAITING, RUNNING, FORWARDED, DONE = CallState
TABLE = {
    ARRIVED: {"begin": RUNNING, "wait": WAITING, "forward": FORWARDED, "end": DONE},
    WAITING: {"begin": RUNNING, "wait": WAITING, "forward": FORWARDED, "end": DONE},
    RUNNING: {"end": DONE},
    FORWARDED: {"end": DONE},
    DONE: {},
}
for _state, _steps in TABLE.items():
    vars(_state).update(_steps)


def step(state: CallState, event: str) -> CallState:
    """The state after `event`; the hot path writes `state.begin` and so on.

    Raises:
        RuntimeError: the event cannot happen in this state.
    """
    following: CallState = getattr(state, event)
    return following
