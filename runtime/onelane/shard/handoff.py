"""Carries out a shard's part in a change of placement, which `core/handoff` decides: the state of keys that leave goes
to their new owners, that of keys that arrive is put in place, and calls in between end here, go on, or are held.

Promises: the state of a key is encoded after the last call of the key has ended here, and dropped once its new owner
has acknowledged it. Durable state does not travel: it is on disk, and out of memory, before its key leaves, and its
new owner loads it. A batch that fails is sent again as long as its receiver lives; streams of a key that leaves end
with UNAVAILABLE and the trailer `onelane-moved`. Whatever a service's hooks or values do, the change goes on.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any

import grpc

from onelane.cluster.control import Control
from onelane.core import handoff
from onelane.core.handoff import Action, Handoff, Refuse
from onelane.core.moved import MOVED
from onelane.core.placement import Member, Placement
from onelane.core.trace_context import TraceContext
from onelane.errors import HandOverRefused, KeyMoves, OnelaneError
from onelane.lane.lane import Lane
from onelane.server.call import Call
from onelane.server.call_state import RUNNING
from onelane.shard.awaited_keys import AwaitedKeys
from onelane.shard.given_up_keys import GivenUpKeys
from onelane.shard.handoff_line import HandoffLine
from onelane.shard.handoff_metrics import HandoffMetrics
from onelane.shard.handoff_span import HandoffSpan
from onelane.shard.last_turns import LastTurns
from onelane.shard.late_calls import LateCalls
from onelane.shard.moved_keys import entries_from, put_entries
from onelane.shard.siblings import SiblingChannels
from onelane.shard.stray_entries import StrayEntries
from onelane.state.entries import KeyedEntry
from onelane.state.keyed import KeyedDicts
from onelane.telemetry.stats import Stats
from onelane.telemetry.tracer import Tracer
from onelane.v1 import control_pb2, siblings_pb2

log = logging.getLogger("onelane.handoff")
BATCH_BYTES = 256 * 1024
"""Of one message, at most; but never less than one key."""
SCAN_KEYS = 64
"""Keys that are looked at before the lane serves its calls again."""
GIVE_WAY_S = 0.001
"""How long the lane has nothing of a change to do between two pieces of it, where calls come. Clients on the same cores
keep a quarter of their calls where a change takes all that it gets, and half of them so; it takes twice as long."""
PROGRESS_S = 0.2
GIVE_UP_S = 1.0
"""How long what holds a key that leaves may take to end once it is cancelled; well below what the supervisor grants a
life beyond `drain_s` (`CHANGE_MARGIN_S`)."""
COMPARED_KEYS = 1000
"""Keys of one change that are encoded once more as they are forgotten, to find what was written outside of turns."""


class HandoffCarrier:
    """See the module. Owned by one lane."""

    def __init__(
        self,
        lane: Lane,
        keyed: KeyedDicts,
        channels: SiblingChannels,
        control: Control,
        *,
        under_way: Callable[[], Iterable[Call]],
        drop_foreign: Callable[[Callable[[str], bool]], None],
        drain_s: float,
        stats: Stats,
        tracer: Tracer,
    ) -> None:
        """under_way: the calls that the listener has, and those of this shard to itself. drop_foreign: drops what stays
        behind of keys that this life does not own; its argument tells of a key whether it does. drain_s: how long calls
        of a key that leaves may go on."""
        self._lane = lane
        self._keyed = keyed
        self._channels = channels
        self._control = control
        self._under_way = under_way
        self._drop_foreign = drop_foreign
        self._drain_s = drain_s
        self._handoff: Handoff | None = None
        self._tracer = tracer
        self._trace: TraceContext | None = None
        """Of the change, where it is recorded."""
        self._busy: Counter[str] = Counter()
        """Key that leaves → calls and turns of it that have not ended."""
        self._lines: dict[int, HandoffLine] = {}
        """Life → what goes to it."""
        self._awaited = AwaitedKeys(lane.queue.arrivals, channels)
        self._late = LateCalls(lane, under_way, drain_s=drain_s)
        self._last_turns = LastTurns(lane, keyed)
        self._given_up = GivenUpKeys(lane, keyed)
        self._stray_entries = StrayEntries(keyed, self._given_up)
        self._tasks: set[asyncio.Task[None]] = set()
        self._bytes = 0
        arrivals = lane.queue.arrivals
        self._metrics = HandoffMetrics(stats, held=lambda: arrivals.count)
        arrivals.paused = self._metrics.paused

    @property
    def _me(self) -> Member:
        router = self._lane.router
        return Member(router.shard, "", "", router.life)

    # What the supervisor tells

    def prepare(
        self,
        before: Placement,
        after: Placement,
        dead: Iterable[int],
        trace: TraceContext | None = None,
        *,
        has_just_started: bool = False,
    ) -> None:
        """A change begins; or a coordinator asks again how far it is. has_just_started: this process starts in the
        middle of it."""
        current = self._handoff
        if current is not None and current.after.epoch == after.epoch:
            self._apply(current.standing())
        elif after.epoch > self._lane.placement.epoch or has_just_started:
            self._begin(Handoff(self._me, before, after, tuple(dead)), trace)

    def gone(self, life: int) -> None:
        """A life has died."""
        if self._handoff is not None:
            self._end_line(life)
            self._apply(self._handoff.gone(life))

    def reborn(self, member: Member) -> None:
        """The next life of a shard that has died, also where nobody has told that."""
        if self._handoff is not None:
            for line in list(self._lines.values()):
                if line.to.name == member.name and line.to.life < member.life:
                    # It has the socket of the dead life, and would refuse its batches for ever.
                    self._end_line(line.to.life)
            self._apply(self._handoff.reborn(member))

    def _end_line(self, life: int) -> None:
        """Send nothing any more to a life that has died."""
        if (line := self._lines.pop(life, None)) is not None:
            line.cancel("life_died")

    def placed(self, placement: Placement) -> None:
        """A placement is followed: the change that leads to it is over."""
        if self._handoff is not None and placement.epoch >= self._handoff.after.epoch:
            self._end()
            is_own = self._lane.router.is_own
            sweep = self._stray_entries.sweep(
                lambda key: is_own(placement.owner_of(key)), is_over=lambda: self._handoff is not None
            )
            self._start(sweep)

    def end_hops(self) -> None:
        """This process ends. Where it leaves the app, streams that it only sends on end as those of a key that moves:
        their clients open them again by another way, or directly."""
        placement = self._lane.placement
        if all(member.life != self.life for member in placement.members):
            for call in list(self._lane.forwarded_streams):
                _end_stream(call, placement.epoch)

    def _end(self) -> None:
        self._handoff = None
        self._last_turns.clear()
        self._busy.clear()
        for line in self._lines.values():
            line.cancel()
        self._lines.clear()

    async def aclose(self) -> None:
        self._end()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # What leaves

    def _begin(self, change: Handoff, trace: TraceContext | None) -> None:
        # The end of the last change comes by way of the membership, and may come later than the next change.
        self._end()
        self._handoff, self._trace, self._bytes = change, trace, 0
        self._lane.change(change)
        ends = [*self._end_calls(change), *self._wait_turns(change)]
        self._apply(change.begin(set(self._busy)))
        for end in ends:
            end()
        if change.has_arriving:
            self._start(self._awaited.ask(change, is_over=lambda: change is not self._handoff))
        if change.has_leaving:
            # From now on: a key that is busy must be known as such before.
            self._lane.router.on_leaving = self._called
            self._start(self._scan(change))
            self._start(self._cut_off_late(change))
        self._start(self._tell_progress(change))

    def _leaves(self, key: str) -> bool:
        owner = self._lane.router.find_home(key)
        return isinstance(owner, Member) and owner.name != ""

    def _end_calls(self, change: Handoff) -> Iterator[Callable[[], object]]:
        """Count the calls that run without a turn, of keys that leave; streams are ended. Yields what to do for each
        once the change has begun."""
        for call in self._under_way():
            key = getattr(call, "key", None)
            if call.state is not RUNNING or key is None or not self._leaves(key):
                continue
            self._busy[key] += 1
            yield partial(call.add_done_callback, partial(self._call_ended, change, key))
            if self._lane.entries[call.method].method.has_stream:
                yield partial(_end_stream, call, change.after.epoch)

    async def _cut_off_late(self, change: Handoff) -> None:
        """End the calls, timers and tasks which hold keys that leave, and have not ended by themselves in the time of a
        drain; give up those that do not end then."""
        await asyncio.sleep(self._drain_s)
        if change is self._handoff:
            self._late.cancel(self._busy)
            await asyncio.sleep(GIVE_UP_S)
        if change is self._handoff:
            self._give_up_late(change)

    def _give_up_late(self, change: Handoff) -> None:
        """Have keys leave whose last turn has caught its cancellation, and goes on: else this process would be killed
        for it, with the state of all keys that stay."""
        self._late.cut_off(self._busy)
        keys = [key for key in self._busy if change.is_busy(key)]
        self._late.log_given_up(keys, after_s=GIVE_UP_S)
        for key in keys:
            if key in self._lane.queue.turns.held:
                self._last_turns.tell(key)
                self._given_up.add(key)
            del self._busy[key]
            self._apply(change.give_up(key))

    def _call_ended(self, change: Handoff, key: str, _: object) -> None:
        self._quiet(change, key)

    def _wait_turns(self, change: Handoff) -> Iterator[Callable[[], object]]:
        for key in list(self._lane.queue.turns.held):
            if self._leaves(key):
                self._busy[key] += 1
                yield partial(self._start, self._wait_turn(change, key))

    async def _wait_turn(self, change: Handoff, key: str) -> None:
        """Take the turn of a key that leaves: nobody waits for it any more, so it is the last one here."""
        try:
            turn = await self._lane.queue.take(key, "onelane.handoff")
        except KeyMoves:
            # The turn that was given up goes on in the next change, which waits for it as well.
            return
        if self._given_up.has(key):
            self._end_given_up(key)
        self._lane.queue.leave(turn)
        self._quiet(change, key)

    def _end_given_up(self, key: str) -> None:
        """The turn has ended with which a key had left. Where the key is back, its state is what has come with it."""
        entries = self._given_up.end(key)
        if entries is not None:
            self._install(key, entries)

    def _quiet(self, change: Handoff, key: str) -> None:
        """A call or turn of a key that leaves has ended."""
        if change is not self._handoff or key not in self._busy:
            return
        self._busy[key] -= 1
        if not self._busy[key]:
            del self._busy[key]
            self._apply(change.quiet(key))
            self._hurry(key)

    def _called(self, key: str) -> None:
        """Its new owner holds a call of this key: it goes before all those that nobody waits for."""
        if self._handoff is not None:
            self._apply(self._handoff.called(key))
            self._hurry(key)

    def _hurry(self, key: str) -> None:
        for line in self._lines.values():
            line.hurry(key)

    async def hurry(self, request: siblings_pb2.HurryRequest) -> None:
        """The new owner of these keys holds calls of them, which may have come to it by way of others."""
        await self._wait_for(request.epoch)
        if self._handoff is not None and self._handoff.after.epoch == request.epoch:
            for key in request.keys:
                self._called(key)

    async def _scan(self, change: Handoff) -> None:
        durable = () if self._lane.kept is None else self._lane.kept.journal.keys()
        keys, received = chain(self._keyed.keys(), durable), 0
        while piece := list(islice(keys, SCAN_KEYS)):
            if change is not self._handoff:
                return
            self._apply(change.scanned(piece))
            received = await self.give_way(received)
        if change is self._handoff:
            self._apply(change.scan_done())

    async def _tell_progress(self, change: Handoff) -> None:
        """Tell the supervisor again and again: a life that goes on, or waits for others, is not killed, however many
        keys leave it."""
        last = None
        while change is self._handoff:
            await asyncio.sleep(PROGRESS_S)
            progress = self._progress(change)
            if progress.waits_for or progress.waits_for_store or progress != last:
                await self._control.send(control_pb2.ToSupervisor(progress=progress))
            last = progress

    def _progress(self, change: Handoff) -> control_pb2.HandoffProgress:
        return control_pb2.HandoffProgress(
            epoch=change.after.epoch,
            leaving=change.keys_to_leave,
            departed=change.keys_left,
            bytes=self._bytes,
            held=self._lane.queue.arrivals.count,
            waits_for=sorted(self._waits_for(change)),
            waits_for_store=any(line.waits_for_store for line in self._lines.values()),
        )

    def _waits_for(self, change: Handoff) -> set[int]:
        """As `Handoff.waits_for`, which takes for sent what is still to be packed, and for over what has no answer."""
        lives = set(change.waits_for())
        for line in self._lines.values():
            if line.is_unanswered:
                lives.add(line.to.life)
            elif line.has_more and not line.waits_for_store:
                lives.add(self.life)
        return lives

    # What arrives

    async def hand_over(self, request: siblings_pb2.HandOverRequest) -> None:
        """Take a batch of a sibling; it is acknowledged when this returns.

        Raises:
            HandOverRefused: its sender has died by what this shard knows, or it is meant for another life.
        """
        await self._wait_for(request.epoch)
        change = self._handoff
        if change is None or change.after.epoch != request.epoch:
            raise HandOverRefused(f"the change to epoch {request.epoch} is over")
        if request.keys:
            moved = {moved.key: moved for moved in request.keys}
            actions = change.moved(request.from_life, request.to_life, list(moved))
            self._check(actions)
            for action in actions:
                assert isinstance(action, handoff.Install)
                for key in action.keys:
                    self._install(key, list(entries_from(moved[key], release=request.release)))
                self._apply(change.installed(action.keys))
        if request.done:
            actions = change.done(request.from_life, request.to_life)
            self._check(actions)
            self._apply(actions)

    async def _wait_for(self, epoch: int) -> None:
        while epoch > self._lane.placement.epoch:
            await self._lane.queue.arrivals.wait(key="", epoch=epoch)

    def _check(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Refuse):
                raise HandOverRefused(action.reason)

    def _install(self, key: str, entries: list[KeyedEntry]) -> None:
        self._stray_entries.drop((key,))
        self._keyed.install(key, entries)
        if self._given_up.has(key):
            self._given_up.arrived(key, entries)
        elif self._lane.kept is None:
            self._keyed.arrived(key)
        elif entries and self._keyed.owe_arrival(key):
            self._lane.kept.journal.load(key, _ignore)

    # What to do

    def _apply(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case handoff.Send(to, keys):
                    self._line(to).send(keys)
                case handoff.SendDone(to):
                    self._line(to).send_done()
                case handoff.Forget(keys):
                    for key in keys:
                        self._keyed.forget(key)
                case handoff.Drop(keys):
                    self._stray_entries.drop(keys)
                case handoff.Release(keys):
                    self._lane.queue.arrivals.arrived(keys)
                case handoff.ReleaseAll():
                    self._lane.queue.arrivals.all_arrived()
                case handoff.Departed():
                    self._drop_foreign(lambda key: not self._leaves(key))
                    self._report(control_pb2.ToSupervisor(departed=self._lane.placement.epoch))
                case handoff.Arrived():
                    self._report(control_pb2.ToSupervisor(arrived=self._lane.placement.epoch))

    def _report(self, message: control_pb2.ToSupervisor) -> None:
        self._start(self._control.send(message))

    def _line(self, to: Member) -> HandoffLine:
        line = self._lines.get(to.life)
        if line is None:
            assert self._handoff is not None
            span = HandoffSpan(self._tracer, self._trace, to)
            line = self._lines[to.life] = HandoffLine(self, self._handoff, to, span)
        return line

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # For its lines

    async def release(self, keys: Sequence[str]) -> None:
        await self._last_turns.release(keys)

    def pack(self, keys: Sequence[str], request: siblings_pb2.HandOverRequest) -> None:
        """Put the first of these keys, which have been released, with their state into a message, as many as fit."""
        size = 0
        for key in keys:
            if size >= BATCH_BYTES:
                break
            size += self._put_entries(request.keys.add(key=key))
        self._bytes += size
        self._metrics.sent(size)

    def _put_entries(self, moved: siblings_pb2.MovedKey) -> int:
        key = moved.key
        try:
            return len(key) + put_entries(moved, self._keyed.entries_of(key))
        except Exception as error:
            # Whatever it is: the other keys of this life leave.
            moved.ClearField("entries")
            self._keyed.lose("unwritable", f"key {key!r}: {type(error).__name__}: {error}")
            return len(key)

    def acknowledged(self, change: Handoff, life: int, moved: Sequence[siblings_pb2.MovedKey]) -> None:
        self._metrics.acknowledged(len(moved))
        if change is self._handoff:
            for key in moved[: max(0, COMPARED_KEYS - change.keys_left)]:
                self._stray_entries.compare(key)
            self._apply(change.sent_acknowledged(life, [key.key for key in moved]))

    async def give_way(self, received: int) -> int:
        seen = self._lane.received
        await asyncio.sleep(GIVE_WAY_S if seen > received else 0)
        return seen

    def channel(self, to: Member) -> Any:
        return self._channels.to(to)

    @property
    def life(self) -> int:
        return self._lane.router.life


def _ignore(_: OnelaneError | None) -> None: ...


def _end_stream(call: Call, epoch: int) -> None:
    """End a stream whose key leaves: its client opens it again where the key is now."""
    details = f"its key has moved to another shard, in epoch {epoch}"
    call.cut_off(grpc.StatusCode.UNAVAILABLE, details, ((MOVED, str(epoch)),))
