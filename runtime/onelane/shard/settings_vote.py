"""A two-phase commit, by which the settings of an app's services are replaced in all of its shards, or in none.

The supervisor proposes new settings and every shard votes; where all accept, the supervisor commits, and each shard
uses the new settings from its next tick on.
"""

import json
from typing import Any

from onelane.cluster.control import Control
from onelane.config import App
from onelane.errors import BadConfig
from onelane.shard import settings
from onelane.shard.shard import Shard
from onelane.v1 import control_pb2


class SettingsVote:
    """One shard's part in the commit. Owned by its lane."""

    def __init__(self, control: Control, shard: Shard, app: App) -> None:
        self._control = control
        self._shard = shard
        self._config_type = app.config_type
        self._committed: tuple[int, Any] | None = None
        """Generation and settings that the next tick applies."""

    async def vote(self, proposal: control_pb2.Settings) -> None:
        """Answer whether proposed settings are valid here; if not, with the fault."""
        fault = ""
        try:
            self._parse(proposal)
        except BadConfig as error:
            fault = str(error)
        except Exception as error:
            # A validator of the service's own may raise anything.
            fault = f"apps.{self._shard.app}.config: {error!r}"
        answer = control_pb2.Proposed(generation=proposal.generation, fault=fault)
        await self._control.send(control_pb2.ToSupervisor(proposed=answer))

    def commit(self, accepted: control_pb2.Settings) -> None:
        """Have the next tick apply settings that every shard has accepted."""
        self._committed = (accepted.generation, self._parse(accepted))

    async def apply(self) -> None:
        """Replace the shard's settings where new ones have been committed, and tell the supervisor."""
        if self._committed is None:
            return
        (generation, config), self._committed = self._committed, None
        self._shard.configure(config)
        await self._control.send(control_pb2.ToSupervisor(committed=generation))

    def _parse(self, message: control_pb2.Settings) -> Any:
        return settings.build_settings(self._config_type, json.loads(message.config), app=self._shard.app)
