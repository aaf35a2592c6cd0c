"""This supervisor as a machine of a cluster: it joins, coordinates where it is its turn, and has the lives of each app
follow the placements of all machines.

Promises: the number of a life is above all lives that any entry has named, and no other life's.
"""

import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

import anyio

from onelane.cluster.coordination import (
    ConditionFailed,
    CoordinationRefused,
    CoordinationStore,
    CoordinationUnavailable,
    Created,
    LeaseEnded,
    Put,
)
from onelane.cluster.coordination.address import etcd_address
from onelane.cluster.coordination.etcd import EtcdStore
from onelane.cluster.machines import AppPart, ClusterKeys, ClusterView
from onelane.cluster.placements import PlacementRefused, put_pins
from onelane.config import App
from onelane.core.cluster_settings import ClusterSettings
from onelane.core.machine_links import LinkFiles, MachineLinks
from onelane.core.placement import Member, Placement
from onelane.errors import first_of
from onelane.supervisor.cluster_watch import ClusterWatch
from onelane.supervisor.coordinator import Coordinator, FirstPlacement
from onelane.supervisor.guard import guarded_for_ever
from onelane.supervisor.machine import Machine, MachineLives
from onelane.supervisor.machine_record import machine_name, record_of

if TYPE_CHECKING:
    from onelane.supervisor.xds_server import XdsServer

_T = TypeVar("_T")
log = logging.getLogger("onelane.supervisor")
IDENTITY_BYTES = 32
STORE_AGAIN_S = 0.5
"""Before the store is asked again for a number, where it did not answer."""


class FollowingApp(Protocol):
    """The lives of one app on this machine."""

    @property
    def name(self) -> str: ...

    @property
    def first_placement(self) -> Placement:
        """Where no machine has placed the app yet: epoch and points."""

    @property
    def lives(self) -> tuple[Member, ...]:
        """For the record of this machine."""

    @property
    def part(self) -> AppPart:
        """For the record of this machine."""

    async def follow(self) -> None:
        """Follow the views of all machines, until cancelled."""


class ClusterMember:
    """See the module. Owned by the supervisor."""

    def __init__(
        self, settings: ClusterSettings, apps: Mapping[str, App], lives: MachineLives, *, page: str = ""
    ) -> None:
        """page: see `record_of`.

        Raises:
            BadConfig: a file that the settings name cannot be used; nothing has been sent.
        """
        record = record_of(settings, apps, page=page)
        self.links = links_of(settings)
        self.advertise, self.link_ports = settings.advertise, settings.ports_of_links
        self._keys = ClusterKeys(settings.name)
        self._store: CoordinationStore = (store := EtcdStore(etcd_address(settings)))
        self.machine = Machine(self._store, self._keys, record, lives)
        self._apps: dict[str, FollowingApp] = {}
        self._coordinator = coordinator = Coordinator(self._store, self.machine, self._first_placement)
        self.watch = ClusterWatch(self.machine, refusals=lambda: coordinator.refusals, requests=lambda: store.requests)
        """What people are told."""
        self._numbering = anyio.Lock()
        self.xds = _xds_server(settings.xds)
        """Where this machine has one."""

    @property
    def name(self) -> str:
        """Of this machine."""
        return self.machine.name

    @property
    def view(self) -> ClusterView | None:
        """All machines, as of the last word from the store."""
        return self.machine.view

    @property
    def changed(self) -> anyio.Event:
        """Set when there is another view; another event follows it."""
        return self.machine.changed

    def add(self, app: FollowingApp) -> None:
        self._apps[app.name] = app

    async def run(self) -> None:
        """Join the cluster and stay, until cancelled.

        Raises:
            JoinRefused, CoordinationRefused: see `Machine.run`.
            PortTaken: somebody else listens at the address of xDS; nothing has been sent.
        """
        try:
            async with anyio.create_task_group() as tasks:
                if self.xds is not None:
                    await self.xds.start()
                    follow = partial(self.xds.follow, lambda: self.view, lambda: self.changed)
                    tasks.start_soon(guarded_for_ever, follow)
                tasks.start_soon(guarded_for_ever, self._coordinator.run)
                tasks.start_soon(guarded_for_ever, self.watch.run)
                for app in self._apps.values():
                    tasks.start_soon(guarded_for_ever, app.follow)
                await self.machine.run()
        except BaseExceptionGroup as group:
            raise first_of(group) from None
        finally:
            with anyio.CancelScope(shield=True):
                await self._store.close()
                if self.xds is not None:
                    await self.xds.close()

    def announce(self, *, within_s: float = 0.0) -> None:
        """Have the record of this machine say what its apps say now, within that time."""
        apps = self._apps.values()
        parts = {app.name: app.part for app in apps}
        self.machine.announce({app.name: app.lives for app in apps}, parts, within_s=within_s)

    async def next_life(self) -> int:
        """The number of a life that was launched; waits for the store.

        It is the revision of a write that is made now, so it is above all numbers that were given before, by whichever
        machine, and so above all lives that an entry can name by now.
        """
        async with self._numbering:
            return await self._asked(self._number)

    async def identity_key(self) -> bytes:
        """Of the assertions of identity between the apps of all machines. Waits for the store, where the first machine
        that asks has it kept."""
        view, key = self.view, self._keys.identity
        entry = None if view is None else view.snapshot.entries.get(key)
        return entry.value if entry is not None else await self._asked(self._kept_identity_key)

    async def put_pins(self, app: str, pins: Mapping[str, str]) -> None:
        """Write pins of an app, canonical key → name of a shard, in place of those of the view.

        Raises:
            ConditionFailed: they are others by now.
            CoordinationUnavailable, CoordinationRefused: by the store.
        """
        if (view := self.view) is None:
            raise CoordinationUnavailable("this machine has not joined yet")
        await self._store.commit(*put_pins(view, app, pins))

    async def _kept_identity_key(self) -> bytes:
        drawn, key = secrets.token_bytes(IDENTITY_BYTES), self._keys.identity
        try:
            await self._store.commit([Created(key, 0)], [Put(key, drawn)])
        except ConditionFailed:
            return (await self._store.read(key)).entries[key].value
        return drawn

    async def _number(self) -> int:
        lease = self.machine.lease
        if lease is None:
            raise CoordinationUnavailable("this machine has no lease now")
        # Under the lease, so that it stays no longer than the machine.
        return await self._store.commit([], [Put(self._keys.number(self.name), b"", lease.lease_id)])

    async def _asked(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        while True:
            try:
                return await ask()
            except (CoordinationUnavailable, CoordinationRefused, LeaseEnded) as error:
                log.warning("machine.waits name=%s reason=%s", self.name, error)
                await anyio.sleep(STORE_AGAIN_S)

    def _first_placement(self, app: str) -> FirstPlacement:
        if app not in self._apps:
            raise PlacementRefused(
                f"app {app!r} runs on other machines, and not on {self.name}, which coordinates: use the same file"
            )
        first = self._apps[app].first_placement
        return FirstPlacement(first.epoch, first.points)


def _xds_server(listen: str) -> "XdsServer | None":
    if not listen:
        return None
    # Only where it is asked for.
    from onelane.supervisor.xds_server import XdsServer

    return XdsServer(listen)


def links_of(settings: ClusterSettings) -> MachineLinks:
    """Who this machine is to the others."""
    tls = settings.tls
    files = None if tls is None else LinkFiles(tls.ca, tls.cert, tls.key)
    return MachineLinks(settings.name, machine_name(settings), files)
