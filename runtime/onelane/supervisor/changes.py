"""Changes of the placement of one app: more or fewer shards, pins, drains, and lives that replace others.

Promises: one change at a time; those that are asked for meanwhile wait, and become one; a change whose new lives do not
start is given up, and nothing has changed; the lives that a change leaves out finish their calls and end, and count as
no crash. Pins are kept over changes, and not over a restart of the supervisor.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import anyio

from onelane.core.placement import Placement
from onelane.core.validation import changed
from onelane.errors import OnelaneError
from onelane.supervisor.app_sockets import AppSockets
from onelane.supervisor.change_trace import ChangeTrace, ChangeTraces
from onelane.supervisor.placing import ChangePlan, PlacedApp, Placing, RunningMove
from onelane.supervisor.shard_state import ShardEvent, ShardState
from onelane.supervisor.supervised_shard import SupervisedShard
from onelane.supervisor.target import Alteration, AppTarget, NotChanged, pinned, unpinned

log = logging.getLogger("onelane.supervisor")
PROGRESS = ("leaving", "departed", "bytes", "held")
"""Of a `HandoffProgress`, for people."""


class ChangingApp(PlacedApp, Protocol):
    """The app, as its changes see it."""

    @property
    def placing(self) -> Placing:
        """Decides on its placements."""

    @property
    def change_traces(self) -> ChangeTraces:
        """Begins the trace of a change."""

    async def tell_away(self) -> None:
        """Tell the shards which of them serve no calls."""

    def forget(self, shard: SupervisedShard) -> None:
        """A shard that has left the placement has ended for good."""


@dataclass
class _Request:
    alter: Alteration
    over: anyio.Event = field(default_factory=anyio.Event)
    fault: str = ""
    left: Sequence[SupervisedShard] = ()
    """The shards that the change has left out."""

    def end(self, fault: str = "") -> None:
        self.fault = fault
        self.over.set()


class Changes:
    """See the module. Owned by the app's supervisor."""

    def __init__(self, app: ChangingApp) -> None:
        self._app = app
        self.sockets: AppSockets | None = None
        """None where the listener opens its sockets itself: a new life could not share them."""
        self.target = AppTarget(app.name, len(app.shards), dict(app.settings.pins))
        """The one that has been reached."""
        self._file_pins = dict(app.settings.pins)
        self._plan: ChangePlan | None = None
        """The one that is being carried out."""
        self._waiting: list[_Request] = []
        self._is_at_work = False

    @property
    def running(self) -> RunningMove | None:
        """The keys of the change under way move."""
        return self._app.placing.running

    def objection(self) -> str:
        """Why the app's placement cannot change at all, or ""."""
        settings = self._app.settings
        if not settings.adopts_sockets:
            return f"its listener {settings.listener!r} opens its sockets itself, so no two lives can share them"
        if settings.membership == "static":
            return "its membership is static"
        return "it stops" if self._app.is_stopping else ""

    async def reach(self, alter: Alteration) -> None:
        """Have the target altered; returns once the placement has changed and the shards that it leaves out have ended.

        Raises:
            NotChanged: it is not possible, or was given up.
        """
        if fault := self.objection():
            raise NotChanged(f"{self._app.name} cannot change its placement: {fault}")
        alter(self._expected())
        request = _Request(alter)
        self._waiting.append(request)
        if not self._is_at_work:
            self._is_at_work = True
            self._app.start_soon(self._work)
        await request.over.wait()
        if request.fault:
            raise NotChanged(request.fault)
        for shard in request.left:
            await shard.ended.wait()

    def _expected(self) -> AppTarget:
        """The target once all that has been asked for is carried out."""
        target = self._plan.target if self._plan is not None else self.target
        for request in self._waiting:
            target = request.alter(target)
        return replace(target, replaced=frozenset())

    def status(self) -> dict[str, Any] | None:
        """The change under way, for people; None without one."""
        move = self.running
        if (plan := self._plan) is not None:
            row: dict[str, Any] = {
                "what": plan.what,
                "from": self._app.placement.epoch,
                "to": plan.after.epoch,
                "waiting": len(self._waiting),
                "starting": [shard.member.name for shard in plan.joining if not shard.is_up],
            }
        elif (other := self._app.placing.elsewhere) is not None:
            row = {"what": other.what, "from": other.before, "to": other.after, "waiting": 0, "starting": []}
            move = other.move
        else:
            return None
        return row if move is None else row | _progress_of(move)

    async def pin(self, key: str, shard: str) -> None:
        """Have the shard of this name own a key.

        Raises:
            NotChanged: see `reach`.
        """
        if (shared := self._app.placing.shared_pins) is None:
            await self.reach(pinned(key, int(shard.rpartition("-")[2])))
        else:
            await shared.alter(key, shard)

    async def unpin(self, key: str) -> None:
        """Have the ring say which shard owns a key.

        Raises:
            NotChanged: see `reach`.
        """
        if (shared := self._app.placing.shared_pins) is None:
            await self.reach(unpinned(key))
        else:
            await shared.alter(key, "")

    def has_pin(self, key: str) -> bool:
        shared = self._app.placing.shared_pins
        return key in (self.target.pins if shared is None else shared.current())

    def pins(self) -> list[dict[str, Any]]:
        """The pins of the file and those made since, for people."""
        if (shared := self._app.placing.shared_pins) is not None:
            placed = self._app.placement.pins
            rows = sorted(shared.current().items())
            return [{"key": k, "shard": shard, "from_file": False, "waiting": k not in placed} for k, shard in rows]
        target = self.target
        return [
            {
                "key": key,
                "shard": f"{target.app}-{index}",
                "from_file": self._file_pins.get(key) == index,
                "waiting": key not in target.placed_pins,
            }
            for key, index in sorted(target.pins.items())
        ]

    def will_leave(self, shard: SupervisedShard) -> bool:
        """Whether the change that is under way, and cannot be given up any more, leaves this shard out."""
        return self.running is not None and self._plan is not None and shard in self._plan.leaving

    def is_left_out(self, shard: SupervisedShard) -> bool:
        """Whether a shard of the app takes calls, and owns no keys: it was drained, and its process has ended since."""
        is_drained = shard.index in self.target.drained
        return shard.state is ShardState.READY and shard in self._app.shards and is_drained

    def is_placed(self, shard: SupervisedShard) -> bool:
        """Whether the placement has this shard."""
        return shard.member.socket in {member.socket for member in self._app.placement.members}

    # Carrying out

    async def _work(self) -> None:
        try:
            while self._waiting:
                requests, self._waiting = self._waiting, []
                await self._carry_out(requests)
        finally:
            self._is_at_work = False
            for request in self._waiting:
                request.end(f"{self._app.name} stops")
            self._waiting = []

    async def _carry_out(self, requests: Sequence[_Request]) -> None:
        """Carry out what is possible of these requests as one change."""
        target, possible = self.target, []
        for request in requests:
            try:
                target = request.alter(target)
            except NotChanged as error:
                request.end(str(error))
            else:
                possible.append(request)
        fault = f"{self._app.name} stops"
        try:
            left = await self._change_to(target)
            for request in possible:
                request.left = left
            fault = ""
        except NotChanged as error:
            fault = str(error)
        except Exception as error:
            log.exception("change.failed app=%s", self._app.name)
            fault = f"the change failed: {type(error).__name__}: {error}"
        finally:
            self._plan = None
            self._app.placing.over()
            for request in possible:
                request.end(fault)

    async def _change_to(self, target: AppTarget) -> Sequence[SupervisedShard]:
        """Returns the shards that the new placement leaves out."""
        plan = self._plan = self._planned(target)
        trace = self._app.change_traces.begin(epoch=plan.after.epoch, what=plan.what)
        try:
            await self._place(plan, trace)
        except BaseException as error:
            trace.end(type(error).__name__)
            raise
        trace.end()
        self._retire(plan.leaving)
        return plan.leaving

    async def _place(self, plan: ChangePlan, trace: ChangeTrace) -> None:
        """Have the placement of a plan, once its new lives have started."""
        try:
            await self._start(plan.joining)
        except BaseException:
            self._retire(plan.joining)
            raise
        placing = self._app.placing
        if not placing.moves(plan):
            self._commit(plan, self._app.placement)
            return
        self._commit(plan, await placing.move(plan, trace))
        # First: a life that has replaced a drained one has its name.
        await self._app.tell_away()
        await placing.tell()

    def _planned(self, target: AppTarget) -> ChangePlan:
        """Raises:
        NotChanged: a new life cannot have its sockets.
        """
        rows = {shard.index: shard for shard in self._app.shards}
        new = [index for index in range(target.shards) if index not in rows or index in target.replaced]
        joining: list[SupervisedShard] = []
        try:
            for index in new:
                joining.append(self._opened(index))
        except (OSError, OnelaneError) as error:
            for shard in joining:
                shard.close_siblings()
            self._close_unused()
            raise NotChanged(f"{self._app.name}-{index} cannot be started: {error}") from error
        leaving = [shard for index, shard in rows.items() if index >= target.shards or index in new]
        members = rows | {shard.index: shard for shard in joining}
        placed = tuple(members[index].member for index in target.placed)
        pins = {key: members[index].member.name for key, index in target.placed_pins.items()}
        after = replace(self._app.placement, epoch=self._app.placement.epoch + 1, members=placed, pins=pins)
        return ChangePlan(target, joining, leaving, after, _words(self.target, target))

    def _opened(self, index: int) -> SupervisedShard:
        assert self.sockets is not None
        if not self.sockets.has_own(index):
            self.sockets.claim_own(index)
        shard = SupervisedShard(self.sockets.member(index, self._app.next_life()), index)
        shard.listen(*self.sockets.listen_for(index, shard.member))
        return shard

    async def _start(self, joining: Sequence[SupervisedShard]) -> None:
        """Start the new lives, and wait until they are ready.

        Raises:
            NotChanged: one of them does not start.
        """
        for shard in joining:
            self._app.begin_beside(shard)
        for shard in joining:
            await shard.ready.wait()
        if self._app.is_stopping:
            raise NotChanged(f"{self._app.name} stops")
        if faults := [shard.fault for shard in joining if shard.fault]:
            raise NotChanged(f"{self._app.name} has not changed: {faults[0]}")

    def _commit(self, plan: ChangePlan, placement: Placement) -> None:
        app, self.target = self._app, replace(plan.target, replaced=frozenset())
        app.placement = placement
        app.settings = changed(app.settings, shards=plan.target.shards, pins=plan.target.placed_pins)
        rows = {shard.index: shard for shard in app.shards if shard not in plan.leaving}
        for shard in plan.joining:
            shard.take_over_from(next((old for old in plan.leaving if old.index == shard.index), None))
            rows[shard.index] = shard
            app.beside.remove(shard)
        app.beside += plan.leaving
        app.shards[:] = [rows[index] for index in sorted(rows)]

    def _retire(self, shards: Iterable[SupervisedShard]) -> None:
        for shard in shards:
            if shard.ended.is_set():
                # As one that the app had: only now nobody needs its sockets.
                self._app.forget(shard)
                continue
            if shard.state is not ShardState.LEAVING:
                shard.follow(ShardEvent.LEAVE_ASKED)
            self._app.start_soon(self._app.retire, shard)

    def ended(self, shard: SupervisedShard) -> None:
        """A shard that was left out has ended."""
        shard.close_siblings()
        self._close_unused()

    def _close_unused(self) -> None:
        """Close the sockets that no shard uses any more."""
        if self.sockets is None:
            return
        users = [*self._app.shards, *self._app.beside]
        self.sockets.keep({shard.index for shard in users}, {shard.sockets[0] for shard in users if shard.sockets})


def _progress_of(move: RunningMove) -> dict[str, Any]:
    """How far the keys have moved; of a change over machines, with the lives of this one."""
    names = {life: name for life, name in move.names.items() if life in move.waits_for or life in move.progress}
    parts = {life: part for life, part in sorted(move.progress.items()) if life in names}
    lives = [
        {"name": names[life], "life": life}
        | {name: getattr(part, name) for name in PROGRESS}
        | {"waits_for": sorted(move.names.get(other, "") for other in part.waits_for)}
        for life, part in parts.items()
    ]
    sums = {name: sum(getattr(part, name) for part in move.progress.values()) for name in PROGRESS}
    waits_for = sorted(names[life] for life in move.waits_for if life in names)
    return {"since_s": time.monotonic() - move.began_at, "waits_for": waits_for, "lives": lives} | sums


def _words(old: AppTarget, new: AppTarget) -> str:
    """How two targets differ."""
    words = [f"{new.shards} shards"] if new.shards != old.shards else []
    words += [f"{old.app}-{index} is replaced" for index in sorted(new.replaced)]
    words += [f"{old.app}-{index} is drained" for index in sorted(new.drained - old.drained)]
    words += [f"{old.app}-{index} is back" for index in sorted(old.drained - new.drained - new.replaced)]
    words += [f"{len(new.pins)} pins"] if new.pins != old.pins else []
    return ", ".join(words)
