"""Restarts and drains of the shards of one app.

Where two lives of a shard can share its sockets, the next life is started first and takes over the keys of the one
before, with their state: see `changes`. Else, and where a lane does not tick, so that it could hand nothing over, the
shard drains, ends, and is started again: its state is lost.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import anyio

from onelane.config import App
from onelane.errors import OnelaneError
from onelane.supervisor import turn_away
from onelane.supervisor.changes import Changes
from onelane.supervisor.shard_state import RESTARTING, ShardEvent, ShardState, is_possible
from onelane.supervisor.supervised_shard import Incarnation, SupervisedShard
from onelane.supervisor.target import NotChanged, drained, replaced, returned

log = logging.getLogger("onelane.supervisor")


class NotRestarted(OnelaneError):
    """A restart that was asked for has not restarted every shard."""


class RestartableApp(Protocol):
    """The app, as its restarts see it."""

    name: str
    settings: App
    shards: list[SupervisedShard]
    changes: Changes

    @property
    def is_stopping(self) -> bool: ...

    async def let_finish(self, incarnation: Incarnation) -> None:
        """Order a drain, and wait until the calls have finished, or their time is over."""

    async def end(self, shard: SupervisedShard, grace_s: float) -> None:
        """End the process of a shard that has drained."""

    async def tell_away(self) -> None:
        """Tell the shards which of them serve no calls."""

    def start_soon(self, work: Callable[..., Any], *arguments: Any) -> None: ...


class Restarts:
    """See the module. Owned by the app's supervisor."""

    def __init__(self, app: RestartableApp) -> None:
        self._app = app
        self._lock = anyio.Lock()
        """Held while a shard restarts: the others serve."""
        self._begun: set[int] = set()
        """Indices of shards whose restart by a change of placement has been asked for, and is not over."""

    @property
    def is_restarting(self) -> bool:
        """A shard restarts, or a restart of all is under way."""
        return self._lock.locked() or bool(self._begun) or any(s.state in RESTARTING for s in self._app.shards)

    def objection(self, event: ShardEvent, shard: SupervisedShard) -> str:
        """Why a shard cannot be drained or restarted now, or ""."""
        may_restart = event is ShardEvent.RESTART_ASKED and self._may_restart(shard)
        if not may_restart and not is_possible(shard.state, event):
            return f"it is {shard.label}"
        if event is ShardEvent.RESTART_ASKED and self.is_restarting:
            return "another restart is under way, and shards restart one after another"
        return ""

    def begin(self, event: ShardEvent, shard: SupervisedShard) -> str:
        """Begin to drain or restart one shard; why that is not possible now, or ""."""
        if fault := "it stops" if self._app.is_stopping else self.objection(event, shard):
            return fault
        if event is ShardEvent.RESTART_ASKED and self._hands_over(shard):
            self._begun.add(shard.index)
            self._app.start_soon(self._replace_in_turn, shard)
            return ""
        # Now, and not in the task: the next command must see the new state.
        shard.follow(event)
        drains = event is ShardEvent.DRAIN_ASKED
        self._app.start_soon(self.carry_out_drain if drains else self.carry_out_restart, shard)
        return ""

    def _hands_over(self, shard: SupervisedShard) -> bool:
        return not self._app.changes.objection() and not shard.is_unresponsive

    def _may_restart(self, shard: SupervisedShard) -> bool:
        """Also a shard that has died may, where its next life can take over: the way out of code that crashes."""
        has_died = shard.state is ShardState.RECOVERING and self._hands_over(shard)
        return has_died or is_possible(shard.state, ShardEvent.RESTART_ASKED)

    # Restarts

    async def recycle(self) -> None:
        """Restart every shard with fresh code, one after another. A shard that is not restarted is the last.

        Raises:
            NotRestarted: another restart is under way; or with the shards that were not restarted, and why.
        """
        if self.is_restarting:
            raise NotRestarted(f"{self._app.name}: another restart is under way")
        async with self._lock:
            shards = list(self._app.shards)
            for number, shard in enumerate(shards):
                # One that has been left out of the placement meanwhile needs none.
                if shard in self._app.shards and (fault := await self._restart_now(shard)):
                    left = ", ".join(other.member.name for other in shards[number + 1 :])
                    raise NotRestarted(fault + (f"; {left} not restarted either" if left else ""))

    async def _restart_now(self, shard: SupervisedShard) -> str:
        """Restart a shard; why it is not ready now with fresh code, or ""."""
        name = shard.member.name
        if self._app.is_stopping:
            return f"{name} was not restarted: the app stops"
        if not self._may_restart(shard):
            return f"{name} was not restarted: it is {shard.label}"
        if self._hands_over(shard):
            return await self._replace(shard)
        shard.follow(ShardEvent.RESTART_ASKED)
        await self._restart(shard)
        if shard.state is ShardState.READY:
            return ""
        return f"{name} " + (
            "was stopped with its app" if self._app.is_stopping else "does not start again, as its log says"
        )

    async def _replace(self, shard: SupervisedShard) -> str:
        """Have the next life of a shard take over its keys; why it has not, or ""."""
        try:
            await self._app.changes.reach(replaced(shard.index))
        except NotChanged as error:
            return f"{shard.member.name} was not restarted: {error}"
        return ""

    async def _replace_in_turn(self, shard: SupervisedShard) -> None:
        try:
            async with self._lock:
                if fault := await self._replace(shard):
                    log.warning("shard.not_restarted reason=%s", fault)
        finally:
            self._begun.discard(shard.index)

    async def restart_in_turn(self, shard: SupervisedShard, incarnation: Incarnation) -> None:
        """Restart a shard once no other one restarts, unless it has been restarted by then."""
        async with self._lock:
            if (
                shard in self._app.shards
                and shard.incarnation is incarnation
                and (fault := await self._restart_now(shard))
            ):
                log.warning("shard.not_restarted reason=%s", fault)

    async def carry_out_restart(self, shard: SupervisedShard) -> None:
        """After RESTART_ASKED: let the shard's calls finish, end its process, and wait until the next one is ready, or
        does not start."""
        async with self._lock:
            await self._restart(shard)

    async def _restart(self, shard: SupervisedShard) -> None:
        shard.ready = anyio.Event()
        await self.let_calls_finish(shard)
        # If it has died meanwhile, a process with fresh code is on its way already. If the app stops, its `drain` ends
        # this shard once all have drained: until then they forward calls to it.
        if shard.state is ShardState.RESTART_STOPPING and not self._app.is_stopping:
            # Where its process listens on a socket of its own, nobody would accept from now on, nor wait in a queue.
            with suppress(OSError):
                shard.restore_path()
            await self._app.end(shard, self._app.settings.drain_s)
        await shard.ready.wait()

    # Drains

    async def carry_out_drain(self, shard: SupervisedShard) -> None:
        """After DRAIN_ASKED: have the others take over the shard's keys, where they can, and let its calls finish. It
        takes no new call until it is restarted, and its clients go elsewhere."""
        if not self._app.changes.objection():
            try:
                await self._app.changes.reach(drained(shard.index))
            except NotChanged as error:
                log.warning("shard.keys_not_moved shard=%s reason=%s", shard.member.name, error)
        await self.let_calls_finish(shard)
        await turn_away.while_drained(shard, self._app.shards, is_stopping=lambda: self._app.is_stopping)

    async def let_calls_finish(self, shard: SupervisedShard) -> None:
        """After DRAIN_ASKED or RESTART_ASKED."""
        incarnation = shard.incarnation
        if incarnation is None or not is_possible(shard.state, ShardEvent.DRAIN_DONE):
            return
        await self._app.let_finish(incarnation)
        # It may have died meanwhile, or the app may have stopped.
        if shard.incarnation is incarnation and is_possible(shard.state, ShardEvent.DRAIN_DONE):
            shard.follow(ShardEvent.DRAIN_DONE)
            await self._app.tell_away()

    async def bring_back(self, shard: SupervisedShard) -> None:
        """The process of a drained shard has ended by itself, and the next one takes calls: it owns its keys again."""
        try:
            await self._app.changes.reach(returned(shard.index))
        except NotChanged as error:
            log.warning("shard.not_back shard=%s reason=%s", shard.member.name, error)
