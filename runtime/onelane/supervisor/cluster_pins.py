"""The pins of an app that all machines of a cluster share: in the store, and from there into its placement."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from onelane.cluster.coordination import ConditionFailed, CoordinationRefused, CoordinationUnavailable
from onelane.cluster.machines import ClusterView
from onelane.cluster.placements import PlacementRefused, pins_of
from onelane.supervisor.placing import PlacedApp
from onelane.supervisor.target import NotChanged


class PinStore(Protocol):
    """Keeps the pins of all apps."""

    @property
    def view(self) -> ClusterView | None:
        """As of the last word from the store."""

    async def put_pins(self, app: str, pins: Mapping[str, str]) -> None:
        """Write pins in place of those of the view.

        Raises:
            ConditionFailed: they are others by now.
            CoordinationUnavailable, CoordinationRefused: by the store.
        """


class ClusterPins:
    """See `placing.SharedPins`."""

    def __init__(self, app: PlacedApp, store: PinStore, until: Callable[[Callable[[], bool]], Awaitable[None]]) -> None:
        """until: waits until a condition holds, which is asked again whenever there is news of the cluster."""
        self._app = app
        self._store = store
        self._until = until

    def current(self) -> Mapping[str, str]:
        view = self._store.view
        try:
            return {} if view is None else pins_of(view, self._app.name)
        except PlacementRefused:
            # The coordinator tells.
            return {}

    async def alter(self, key: str, shard: str) -> None:
        names = {member.name for member in self._app.placement.members}
        if shard and shard not in names:
            raise NotChanged(f"no shard is called {shard}: {self._app.name} has {', '.join(sorted(names))}")
        if not shard and key not in self.current():
            raise NotChanged(f"{self._app.name} has no pin for the key {key!r}")
        try:
            await self._store.put_pins(self._app.name, self._altered(key, shard))
        except ConditionFailed:
            raise NotChanged(f"the pins of {self._app.name} were changed at the same time: try again") from None
        except (CoordinationUnavailable, CoordinationRefused) as error:
            raise NotChanged(f"the pins of {self._app.name} cannot be kept: {error}") from None
        await self._until(lambda: self._app.placement.pins.get(key, "") == shard or self._app.is_stopping)

    def _altered(self, key: str, shard: str) -> dict[str, str]:
        others = {other: name for other, name in self.current().items() if other != key}
        return {**others, key: shard} if shard else others
