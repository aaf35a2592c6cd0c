"""The machines of a cluster as the store has them: their keys, their records, who coordinates. Values; pure.

    /onelane/CLUSTER/machines/NAME       the record of a machine, under its lease
    /onelane/CLUSTER/coordinator/LEASE   a candidate, under the same lease: the oldest one coordinates
    /onelane/CLUSTER/apps/APP            see `placements`
    /onelane/CLUSTER/pins/APP            see `placements`
    /onelane/CLUSTER/numbers/NAME        a machine asks for a number of a life, under its lease
    /onelane/CLUSTER/identity            the key of assertions of identity, which the first machine has drawn: a secret
    /onelane/CLUSTER/forgotten/LEASE     the lease of a machine is about to be revoked by an operator: its `lease_s`

A record says which readers understand it. Who meets one that it does not understand does not join, and changes nothing:
of two releases the one that came first goes on.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import msgspec

from onelane.cluster.coordination import EntryChanges, Snapshot, StoredEntry
from onelane.cluster.coordination.members import CLOCKS_APART_S
from onelane.core import addresses
from onelane.core.placement import Member
from onelane.errors import Invalid

RECORD_VERSION = 1
"""Of the records that this release writes, and the newest that it reads."""
OLDEST_READER = 1
"""The oldest release, by its `RECORD_VERSION`, that understands the records of this one."""

LONGEST_LEASE_S = 60.0
"""By the settings: what a mark that cannot be read is taken for."""


class JoinRefused(Invalid):
    """This machine cannot be part of the cluster as it is now."""


@dataclass(frozen=True, slots=True)
class AppPart:
    """What a machine says of its lives of one app, for the coordinator."""

    placed: tuple[Member, ...] = ()
    """Those that are to own keys: each has been ready, or follows a life that had."""
    stand_ins: tuple[Member, ...] = ()
    """In the places of shards whose machine was given up: see `AppEntry.stand_ins`."""
    epoch: int = 0
    """Of the change that the next two are about."""
    departed: tuple[int, ...] = ()
    """The lives from which every key that leaves is gone."""
    arrived: tuple[int, ...] = ()
    """The lives at which every key that arrives is there."""
    traceparent: str = ""
    """Of the span of a change that this machine wants; "" for none, or where it is not recorded."""


@dataclass(frozen=True, slots=True)
class MachineRecord:
    """What the other machines know of one."""

    name: str
    advertise: str
    """The host or address by which the others reach it."""
    release: str
    """The version of onelane, for people."""
    lease_s: float
    start: str
    """A random name of this start of its supervisor: two of the same name are two machines, or two starts of one."""
    trust: str = ""
    """The fingerprint of the authority by which links are checked; the same on all machines."""
    apps: Mapping[str, tuple[Member, ...]] = field(default_factory=dict)
    """App → its lives on this machine: a life is named from before it gets its setup until its process has ended."""
    parts: Mapping[str, AppPart] = field(default_factory=dict)
    """By app."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """App → a digest of the settings that decide who owns a key, and where it is kept."""
    admin: str = ""
    """The URL of the page of its supervisor; "" where other machines cannot reach it."""
    xds: str = ""
    """`host:port` of its xDS server, as clients reach it; "" where it has none."""
    ahead_s: float | None = None
    """How far its wall clock is ahead of the store's; below zero: behind it. None where that is not known."""


@dataclass(frozen=True, slots=True)
class UnreadableRecord:
    """The record of a machine whose release is newer, or of something that is no machine."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class ClusterKeys:
    """The keys of one cluster in the store; nothing of another one begins with `prefix`."""

    cluster: str
    """Without a slash."""

    @property
    def prefix(self) -> str:
        return f"/onelane/{self.cluster}/"

    @property
    def machines(self) -> str:
        return f"{self.prefix}machines/"

    @property
    def candidates(self) -> str:
        return f"{self.prefix}coordinator/"

    def machine(self, name: str) -> str:
        return self.machines + name

    def candidate(self, lease_id: int) -> str:
        return f"{self.candidates}{lease_id}"

    def app(self, name: str) -> str:
        return f"{self.prefix}apps/{name}"

    def number(self, machine: str) -> str:
        """Written by a machine for the sake of its revision: the number of its next life."""
        return f"{self.prefix}numbers/{machine}"

    @property
    def identity(self) -> str:
        """The key of the assertions of identity between the apps of all machines. A secret."""
        return f"{self.prefix}identity"

    def pins(self, app: str) -> str:
        return f"{self.prefix}pins/{app}"

    @property
    def forgotten_leases(self) -> str:
        return f"{self.prefix}forgotten/"

    def forgotten(self, lease_id: int) -> str:
        return f"{self.forgotten_leases}{lease_id}"


@dataclass(frozen=True, slots=True)
class ClusterView:
    """All that the store has of one cluster, as of one revision."""

    keys: ClusterKeys
    snapshot: Snapshot

    def after(self, changes: EntryChanges) -> "ClusterView":
        entries = dict(self.snapshot.entries)
        for key, entry in changes.entries:
            if entry is None:
                entries.pop(key, None)
            else:
                entries[key] = entry
        return replace(self, snapshot=Snapshot(changes.revision, entries))

    def entry(self, name: str) -> StoredEntry | None:
        """Of a machine."""
        return self.snapshot.entries.get(self.keys.machine(name))

    def machines(self, joined_by: float = math.inf) -> list[MachineRecord | UnreadableRecord]:
        """By name. joined_by: a revision; those that have joined later are left out."""
        entries = self.snapshot.entries.items()
        rows = [e for key, e in entries if key.startswith(self.keys.machines) and e.created <= joined_by]
        return [record_of(e.value, e.key.removeprefix(self.keys.machines)) for e in sorted(rows, key=lambda e: e.key)]

    def by_lease(self) -> dict[int, MachineRecord]:
        """The records that can be read, by the lease that each is under."""
        entries = {machine.name: self.entry(machine.name) for machine in self.machines()}
        machines = [machine for machine in self.machines() if isinstance(machine, MachineRecord)]
        return {entry.lease_id: machine for machine in machines if (entry := entries[machine.name]) is not None}

    def forgotten_lease_s(self, lease_id: int) -> float | None:
        """The `lease_s` of a machine that an operator has marked before its lease was revoked; None without a mark."""
        entry = self.snapshot.entries.get(self.keys.forgotten(lease_id))
        if entry is None:
            return None
        try:
            return float(entry.value)
        except ValueError:
            return LONGEST_LEASE_S

    def coordinator(self) -> StoredEntry | None:
        """The oldest candidate: whatever it writes, it writes on condition that this entry is still there."""
        rows = [entry for key, entry in self.snapshot.entries.items() if key.startswith(self.keys.candidates)]
        return min(rows, key=lambda entry: (entry.created, entry.key), default=None)


def record_bytes(record: MachineRecord) -> bytes:
    return msgspec.json.encode({"version": RECORD_VERSION, "oldest_reader": OLDEST_READER, "machine": record})


@lru_cache(maxsize=1024)  # Each view is looked at by several, and of its records one is new.
def record_of(value: bytes, name: str) -> MachineRecord | UnreadableRecord:
    """name: of the machine, by its key."""
    try:
        row: dict[str, Any] = msgspec.json.decode(value, type=dict[str, Any])
        version, oldest_reader = int(row["version"]), int(row["oldest_reader"])
        if oldest_reader > RECORD_VERSION:
            release = row.get("machine", {}).get("release", "unknown")
            return UnreadableRecord(name, f"it runs onelane {release}, whose records (version {version}) are newer")
        record = msgspec.convert(row["machine"], MachineRecord)
    except (msgspec.DecodeError, ValueError, TypeError, KeyError, AttributeError) as error:
        return UnreadableRecord(name, f"its record is none of a machine ({error})")
    if record.name != name:
        return UnreadableRecord(name, f"its record is that of {record.name}")
    return record


def objections(mine: MachineRecord, others: Iterable[MachineRecord | UnreadableRecord]) -> list[str]:
    """Why this machine cannot join those that are there: each with the name of a machine, and what to do."""
    faults = []
    for other in others:
        if isinstance(other, UnreadableRecord):
            faults.append(
                f"machine {other.name!r} cannot be understood: {other.reason}; this is onelane {mine.release}, "
                f"which reads records up to version {RECORD_VERSION}: upgrade this machine"
            )
        elif other.start != mine.start:
            faults += _differences(mine, other)
    return faults


def _unreachable(mine: MachineRecord, other: MachineRecord) -> list[str]:
    """One of two machines that are not the same says an address that means the other one to the other one."""
    if addresses.is_loopback(mine.advertise) == addresses.is_loopback(other.advertise):
        return []
    near, far = (mine, other) if addresses.is_loopback(mine.advertise) else (other, mine)
    return [
        f"machine {near.name!r} advertises {near.advertise}, which machine {far.name!r} at {far.advertise} cannot "
        f"reach: set `advertise` of {near.name!r} to an address of its own"
    ]


def clock_fault(machine: MachineRecord, other: MachineRecord) -> str:
    """What is wrong where the wall clocks of two machines are apart; "" where they are not, or nobody knows."""
    if machine.ahead_s is None or other.ahead_s is None or abs(machine.ahead_s - other.ahead_s) <= CLOCKS_APART_S:
        return ""
    clocks = (f"{row.name!r} is {_ahead(row.ahead_s)} etcd's" for row in (machine, other))
    return f"the clocks of two machines are too far apart: that of {' and that of '.join(clocks)}"


def with_clock(record: MachineRecord, ahead_s: float | None) -> MachineRecord:
    """The record of a machine whose wall clock is so far ahead of the store's now: as it is where that is not known, or
    where the clock has not been set since."""
    last_s = record.ahead_s
    if ahead_s is None or (last_s is not None and abs(ahead_s - last_s) <= CLOCKS_APART_S):
        return record
    return replace(record, ahead_s=ahead_s)


def _ahead(seconds: float | None) -> str:
    return f"{abs(seconds or 0):.0f} s {'behind' if (seconds or 0) < 0 else 'ahead of'}"


def _differences(mine: MachineRecord, other: MachineRecord) -> list[str]:
    faults = []
    if other.name == mine.name:
        faults.append(f"a machine {mine.name!r} is there already, at {other.advertise}: set `machine` to another name")
    if other.trust != mine.trust:
        faults.append(
            f"machine {other.name!r} trusts another authority (cluster.tls.ca): if it is of another cluster, "
            "set `name` of one of the two to another name"
        )
    faults += _unreachable(mine, other)
    if fault := clock_fault(mine, other):
        faults.append(f"{fault}: set the wrong one, as by NTP")
    unlike = sorted(app for app in mine.settings if other.settings.get(app, mine.settings[app]) != mine.settings[app])
    return faults + [
        f"app {app!r} is set up otherwise on machine {other.name!r} (its services, keys, turns, points, max_key_bytes "
        "or the kind of its store): use the same file on both"
        for app in unlike
    ]
