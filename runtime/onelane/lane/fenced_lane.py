"""The lane of a shard whose machine is a part of a cluster: it asks the clock before a turn begins, and before an
answer leaves. A lane without a fence pays nothing for that.

Not fenced: what a handler sends by itself in the middle of its work, as decision 0024 has it for calls.
"""

from onelane.errors import NoLease
from onelane.lane.fence import FencedHomes, FencedTurns, LaneFence
from onelane.lane.kept_turns import KeptTurns, refuse
from onelane.lane.lane import Lane, Waiting
from onelane.lane.method_entry import Entry
from onelane.server.call import AWAY, OK, Call
from onelane.server.call_state import RUNNING
from onelane.server.listener import Work
from onelane.state.journal import Journal


class FencedLane(Lane):
    """See the module."""

    fence: LaneFence

    def put_behind(self, fence: LaneFence) -> None:
        """Called once, before services are made and calls arrive. No constructor: compiled, it could not hand on the
        `**parts` of another class by their names."""
        self.fence = fence
        self._router.homes = self._homes = FencedHomes(self._router, fence)
        self.queue.keeper = FencedTurns(fence, None)

    def keep_turns(self, journal: Journal, *, app: str) -> KeptTurns:
        turns = super().keep_turns(journal, app=app)
        self.queue.keeper = FencedTurns(self.fence, turns)
        return turns

    def resume(self, call: Call) -> Work:
        waiting = call.waiting
        if not isinstance(waiting, Waiting) or self.fence.is_open:
            return super().resume(call)
        call.waiting = None
        self.tracer.end(waiting.span, error=NoLease.__qualname__)
        self._fail(waiting.entry, call, NoLease(self.name))
        return None

    def end(self, entry: Entry, call: Call, reply: bytes) -> None:
        if call.state is RUNNING and not entry.any and call.hop is not AWAY and not self.fence.is_open:
            self._withhold(call)
        # Not by `super`, which makes an object for each call.
        Lane.end(self, entry, call, reply)

    def _withhold(self, call: Call) -> None:
        """Refuse an answer that was decided while the key was ours. One that the client has had, or that says
        UNAVAILABLE already, stays as it is."""
        if call.early_status is None and not call.is_cancelled and not _is_unavailable(call):
            refuse(call, NoLease(self.name))
            self.refusals.add(call, NoLease.reason)


def _is_unavailable(call: Call) -> bool:
    return call.code_now is not OK and call.code_now.name == NoLease.status
