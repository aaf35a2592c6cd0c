"""Changing the settings of running services: every shard checks the new settings before any shard uses them.

Promises: all shards or none; a file with a fault, or settings that a service refuses, change nothing; a shard that
starts or dies meanwhile has the newest settings that were committed. Another number of shards in the file scales the
app; an app that was scaled meanwhile stays so while the file keeps its number. A change that needs a restart is
reported, and not followed.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import anyio

from onelane.config import App, Config
from onelane.errors import BadConfig
from onelane.shard.settings import differences
from onelane.supervisor.app import AppSupervisor
from onelane.supervisor.target import NotChanged, scaled

log = logging.getLogger("onelane.supervisor")
ANSWER_S = 5.0
"""How long a shard may take to check new settings."""
NewSettings = Sequence[tuple[AppSupervisor, Mapping[str, Any]]]
"""Each app whose services' settings have changed, with the new ones."""


@dataclass(frozen=True)
class ReloadOutcome:
    """The changes that a reload has made, or the faults that kept it from making any."""

    changed: list[str] = field(default_factory=list)
    """`app.name: before → after`, in use by every shard."""
    needs_restart: list[str] = field(default_factory=list)
    """Changes of the file that take effect only when onelane itself is restarted."""
    faults: list[str] = field(default_factory=list)
    """Where there are any, nothing has changed."""


@dataclass(frozen=True)
class FileDifferences:
    """How the file differs from what runs."""

    needs_restart: list[str] = field(default_factory=list)
    """Changes that take effect only when onelane itself is restarted."""
    needs_reload: list[str] = field(default_factory=list)
    """Changes of the services' settings, and of numbers of shards, which a reload would apply."""
    faults: list[str] = field(default_factory=list)
    """Why the file could not be used now."""


class Reloader:
    """Owned by the supervisor. One reload at a time."""

    def __init__(self, apps: Sequence[AppSupervisor], running: Config, read: Callable[[], Config]) -> None:
        """running: the file as it was at the start. read: reads it again; raises BadConfig."""
        self._apps = apps
        self._running = running
        self._read = read
        self._lock = anyio.Lock()
        self._shard_counts = {name: app.shard_count for name, app in running.apps.items()}
        """App → its number of shards in the file that was last followed."""

    async def reload(self) -> ReloadOutcome:
        """Read the file again, and give every shard the settings that it has for its services."""
        async with self._lock:
            try:
                new = self._read()
            except BadConfig as error:
                outcome = ReloadOutcome(faults=str(error).splitlines())
            else:
                outcome = await self._apply(new)
            _log(outcome)
            return outcome

    def compare(self) -> FileDifferences:
        """Compare the file, as it is now, with what runs; changes nothing."""
        try:
            new = self._read()
        except BadConfig as error:
            return FileDifferences(faults=list(error.faults))
        needs_restart, needs_reload = _differences_outside_apps(self._running, new), []
        for app in self._apps:
            if (configured := new.apps.get(app.name)) is not None:
                needs_restart += self._needing_restart(app, configured)
                changes = differences(app.settings.config, configured.config)
                needs_reload += [f"{app.name}.{change}" for change in changes]
                needs_reload += [] if app.changes.objection() else self._scaling(app, configured)
        return FileDifferences(needs_restart, needs_reload)

    async def _apply(self, new: Config) -> ReloadOutcome:
        needs_restart = _differences_outside_apps(self._running, new)
        changed: list[str] = []
        new_settings: list[tuple[AppSupervisor, Mapping[str, Any]]] = []
        for app in self._apps:
            configured = new.apps.get(app.name)
            if configured is None:
                continue
            needs_restart += self._needing_restart(app, configured)
            if changes := differences(app.settings.config, configured.config):
                changed += [f"{app.name}.{change}" for change in changes]
                new_settings.append((app, configured.config))
        if faults := await _objections(new_settings):
            return ReloadOutcome(faults=faults)
        scalings: list[str] = []
        try:
            # Before the settings are used: where it is given up, they are those that they were.
            for app in self._apps:
                scalings += await self._scale(app, new)
        except NotChanged as error:
            return ReloadOutcome(scalings, faults=[str(error)])
        for app, config in new_settings:
            await app.service_settings.commit(config)
        return ReloadOutcome(changed + scalings, needs_restart)

    async def _scale(self, app: AppSupervisor, new: Config) -> list[str]:
        """Follow the number of shards in the file; returns how it has changed.

        Raises:
            NotChanged: it was given up.
        """
        configured = new.apps.get(app.name)
        if configured is None or app.changes.objection() or not (scaling := self._scaling(app, configured)):
            return []
        await app.changes.reach(scaled(configured.shard_count))
        self._shard_counts[app.name] = configured.shard_count
        return scaling

    def _scaling(self, app: AppSupervisor, configured: App) -> list[str]:
        """How the number of shards in the file differs from the one that it had; empty where it does not."""
        before, after = self._shard_counts[app.name], configured.shard_count
        return [f"{app.name}.shards: {before} → {after}"] if before != after else []

    def _needing_restart(self, app: AppSupervisor, configured: App) -> list[str]:
        """Every changed setting of an app but those of its services, and a number of shards that can be followed."""
        scaling = self._scaling(app, configured) if app.changes.objection() else []
        return _differences_outside_config(app.name, self._running.apps[app.name], configured) + scaling


async def _objections(new_settings: NewSettings) -> list[str]:
    """The faults that the shards find in new settings; all apps are asked at once."""
    faults: list[str] = []

    async def propose(app: AppSupervisor, config: Mapping[str, Any]) -> None:
        faults.extend(await app.service_settings.propose(config, ANSWER_S))

    async with anyio.create_task_group() as tasks:
        for app, config in new_settings:
            tasks.start_soon(propose, app, config)
    return sorted(set(faults))


def _log(outcome: ReloadOutcome) -> None:
    for fault in outcome.faults:
        log.error("reload.refused %s", fault)
    for change in outcome.changed:
        log.info("reload.changed %s", change)
    for change in outcome.needs_restart:
        log.warning("reload.needs_restart %s", change)


def _differences_outside_apps(old: Config, new: Config) -> list[str]:
    """Apps that were added or removed, and every changed setting that is no app's."""
    added = [f"apps.{name}: new" for name in sorted(set(new.apps) - set(old.apps))]
    removed = [f"apps.{name}: removed" for name in sorted(set(old.apps) - set(new.apps))]
    return added + removed + differences(_without(old, {"apps"}), _without(new, {"apps"}))


def _differences_outside_config(name: str, old: App, new: App) -> list[str]:
    """Every changed setting of an app but those of its services and its number of shards."""
    others = {"config", "shards"}
    return differences(_without(old, others), _without(new, others), f"{name}.")


def _without(settings: App | Config, others: set[str]) -> dict[str, Any]:
    return {name: value for name, value in asdict(settings).items() if name not in others}
