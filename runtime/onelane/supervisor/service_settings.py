"""New settings for the services of one app: proposed to every shard, and used by all of them or by none."""

import json
from collections.abc import Mapping
from typing import Any, Protocol

import anyio

from onelane.config import App
from onelane.core.validation import changed
from onelane.supervisor.shard_state import ShardState
from onelane.supervisor.supervised_shard import SupervisedShard
from onelane.v1 import control_pb2

COMMIT_S = 2.0
"""How long to wait for shards to use settings that they have checked; `status` shows which generation each uses."""


class ConfiguredApp(Protocol):
    """The app, as its services' settings see it."""

    settings: App

    @property
    def all_shards(self) -> list[SupervisedShard]:
        """With those that join or leave the placement."""


class ServiceSettings:
    """See the module. Owned by the app's supervisor."""

    def __init__(self, app: ConfiguredApp) -> None:
        self._app = app
        self.generation = self._proposals = 1
        """The one in use, and the newest that was proposed."""

    async def propose(self, config: Mapping[str, Any], answer_s: float) -> list[str]:
        """Ask every ready shard whether new settings fit; returns the objections. Changes nothing."""
        self._proposals += 1
        generation = self._proposals
        asked = [shard for shard in self._app.all_shards if shard.state is ShardState.READY]
        for shard in asked:
            await shard.send(control_pb2.ToShard(propose=self._proposal(config, generation)))
        with anyio.move_on_after(answer_s):
            for shard in asked:
                while generation not in shard.settings.answers and shard.state is ShardState.READY:
                    await shard.settings.changed.wait()
        # A shard that has died meanwhile is launched with the settings that are decided now.
        return [
            fault
            for shard in asked
            if shard.state is ShardState.READY
            and (
                fault := shard.settings.answers.pop(
                    generation, f"shard {shard.member.name} has not answered in {answer_s:g} s"
                )
            )
        ]

    async def commit(self, config: Mapping[str, Any]) -> None:
        """Send these settings to every ready shard; a shard that starts later begins with them."""
        self.generation = self._proposals
        self._app.settings = changed(self._app.settings, config=config)
        ready = [shard for shard in self._app.all_shards if shard.state is ShardState.READY]
        for shard in ready:
            await shard.send(control_pb2.ToShard(commit=self._proposal(config)))
        with anyio.move_on_after(COMMIT_S):
            for shard in ready:
                while shard.settings.generation != self.generation and shard.state is ShardState.READY:
                    await shard.settings.changed.wait()

    def _proposal(self, config: Mapping[str, Any], generation: int | None = None) -> control_pb2.Settings:
        text = json.dumps(config, default=str)
        return control_pb2.Settings(generation=generation or self.generation, config=text)

    async def bring_up_to_date(self, shard: SupervisedShard) -> None:
        """A shard has become ready: new settings may have been committed while it was starting."""
        if shard.settings.generation != self.generation:
            await shard.send(control_pb2.ToShard(commit=self._proposal(self._app.settings.config)))
