"""Changing the settings of running services: every shard has checked the new object before any of them gets it.

Promises: all shards or none; a file with a fault, or one that a service refuses, changes nothing; a shard that starts
meanwhile, or dies, has the newest that was decided. What only a restart can change is said, and left as it is.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio

from onelane.config import App, Config
from onelane.errors import BadConfig
from onelane.shard.settings import differences
from onelane.supervisor.app import Keeper

log = logging.getLogger("onelane.supervisor")
ANSWER_S = 5.0
"""How long a shard may take to say what it thinks of new settings."""


@dataclass(frozen=True)
class Reloaded:
    """What a reload has come to."""

    changed: list[str] = field(default_factory=list)
    """`app.name: before → after`, which every shard has now."""
    needs_restart: list[str] = field(default_factory=list)
    """What the file says anew and this process does not follow until it is restarted."""
    faults: list[str] = field(default_factory=list)
    """Where there are any, nothing has changed."""


class Reloading:
    """Owned by the supervisor. One reload at a time."""

    def __init__(self, apps: Sequence[Keeper], running: Config, read: Callable[[], Config]) -> None:
        """running: the file as it was at the start. read: reads it again; raises BadConfig."""
        self._apps = apps
        self._running = running
        self._read = read
        self._one = anyio.Lock()

    async def reload(self) -> Reloaded:
        """Read the file again, and give every shard what it says."""
        async with self._one:
            try:
                new = self._read()
            except BadConfig as error:
                return self._told(Reloaded(faults=str(error).splitlines()))
            return self._told(await self._follow(new))

    async def _follow(self, new: Config) -> Reloaded:
        restart = _outside(self._running, new)
        changed: list[str] = []
        concerned: list[tuple[Keeper, Mapping[str, Any]]] = []
        for keeper in self._apps:
            app = new.apps.get(keeper.name)
            if app is None:
                continue
            restart += _other(keeper.name, self._running.apps[keeper.name], app)
            if told := differences(keeper.settings.config, app.config):
                changed += [f"{keeper.name}.{one}" for one in told]
                concerned.append((keeper, app.config))
        if faults := await self._ask_all(concerned):
            return Reloaded(faults=faults)
        for keeper, config in concerned:
            await keeper.commit(config)
        return Reloaded(changed, restart)

    async def _ask_all(self, concerned: Sequence[tuple[Keeper, Mapping[str, Any]]]) -> list[str]:
        """What the shards have against it."""
        faults: list[str] = []

        async def ask(keeper: Keeper, config: Mapping[str, Any]) -> None:
            faults.extend(await keeper.propose(config, ANSWER_S))

        async with anyio.create_task_group() as tasks:
            for keeper, config in concerned:
                tasks.start_soon(ask, keeper, config)
        return sorted(set(faults))

    def _told(self, what: Reloaded) -> Reloaded:
        for fault in what.faults:
            log.error("reload.refused %s", fault)
        for change in what.changed:
            log.info("reload.changed %s", change)
        for left in what.needs_restart:
            log.warning("reload.needs_restart %s", left)
        return what


def _outside(old: Config, new: Config) -> list[str]:
    """What differs beside the apps that run."""
    found = [f"apps.{name}: new" for name in sorted(set(new.apps) - set(old.apps))]
    found += [f"apps.{name}: gone" for name in sorted(set(old.apps) - set(new.apps))]
    return found + differences(old.model_dump(exclude={"apps"}), new.model_dump(exclude={"apps"}))


def _other(name: str, old: App, new: App) -> list[str]:
    """What differs of an app beside its config."""
    return differences(old.model_dump(exclude={"config"}), new.model_dump(exclude={"config"}), f"{name}.")
