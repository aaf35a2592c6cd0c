"""The dicts of `shard.keyed` of one lane, and the way of a key's entries out of the process and back into another.

Promises: a dict that moves is a plain dict: nothing is done when it is used. All entries of a key leave together; those
that arrive are all decoded before the first is put. A value that cannot leave is logged and counted, and holds up
nothing: neither the other entries of its key nor the change of placement.
Leaves out: whose key it is, and when a key may leave: `core/handoff`. Values that outlive their process: the journal.
"""

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from itertools import chain
from typing import Any

from onelane.errors import BadService, NoRoutingKey, UnreadableValue, UnwritableValue
from onelane.state.codecs import Migration, ServiceCodec
from onelane.state.declaration import Declaration, ValueCodec
from onelane.state.entries import MOST_BYTES, DictKey, KeyedEntry, UnknownKey, canonical_key, spellings
from onelane.state.strict_dict import StrictDict, Unchecked, in_hook_of
from onelane.telemetry.stats import Stats

log = logging.getLogger("onelane.state")
LOGGED = 100
"""Entries that are lost by one life of a shard and logged, at most; all are counted."""

KeyHook = Callable[[DictKey], object]


class KeyedDicts:
    """See the module. Owned by one lane. In every method `key` is canonical text, and a hook's is a dict's."""

    def __init__(self, shard: str, stats: Stats, *, app: str = "") -> None:
        """app: for the errors of strict dicts."""
        self._shard = shard
        self._app = app
        self._dicts: dict[str, MutableMapping[Any, Any]] = {}
        self._of_service: dict[str, dict[Any, Any]] = {}
        """The same dicts, as the service has them: strict ones check each touch."""
        self._declarations: dict[str, Declaration] = {}
        self._moving: dict[str, ValueCodec] = {}
        """Name of a dict that moves → the codec of its values."""
        self.durable: dict[str, ValueCodec] = {}
        """Of these, those that are kept in a store."""
        self._travelling: dict[str, ValueCodec] = {}
        """The others of these: their entries leave with their key."""
        self._unread: dict[str, list[KeyedEntry]] = {}
        """Key → its entries that this release cannot read."""
        self._aside: dict[str, list[KeyedEntry]] = {}
        """Key → its entries as they leave, whatever is in the dicts."""
        self._owed: set[str] = set()
        """Keys that have arrived, and whose durable state is to be loaded before the hooks are called."""
        self._arrive_hooks: list[KeyHook] = []
        self._leave_hooks: list[KeyHook] = []
        self._lost = stats.counter(
            "onelane.state.lost", unit="{entry}", description="Entries of keyed dicts that did not follow their key"
        )
        self._entries = stats.gauge("onelane.keyed.entries", unit="{entry}", description="Entries of keyed dicts")
        self._logged = 0

    def declare(
        self,
        name: str,
        kind: Any,
        *,
        moves: bool = True,
        durable: bool = False,
        idle_s: float | None = None,
        max_resident: int | None = None,
        codec: ServiceCodec | None = None,
        version: int = 1,
        migrate: Mapping[int, Migration] | None = None,
        strict: bool = False,
    ) -> dict[Any, Any]:
        """The dict of that name; see `Shard.keyed`. strict: a `StrictDict`.

        Raises:
            BadService: the kind cannot be encoded, or the dict is declared already, and otherwise.
        """
        declaration = Declaration(
            name, kind, moves, durable, idle_s, max_resident, codec, version, dict(migrate or {}), strict
        )
        if name in self._dicts:
            if differences := declaration.differences(self._declarations[name]):
                raise BadService(f"keyed {name!r} is declared twice, with another {' and '.join(differences)}")
            return self._of_service[name]
        if moves:
            self._moving[name] = ValueCodec(declaration)
            (self.durable if durable else self._travelling)[name] = self._moving[name]
        self._declarations[name] = declaration
        entries: dict[Any, Any] = StrictDict(name, app=self._app) if strict else {}
        self._of_service[name] = entries
        self._dicts[name] = Unchecked(entries) if isinstance(entries, StrictDict) else entries
        self._entries.observe(lambda: float(len(entries)), {"onelane.dict": name})
        return entries

    def entries(self, name: str) -> MutableMapping[Any, Any]:
        """The entries of the dict of that name, for the runtime."""
        return self._dicts[name]

    def counts(self) -> dict[str, int]:
        """Name of each dict → its number of entries."""
        return {name: len(entries) for name, entries in self._dicts.items()}

    def keys(self, *, counts: bool = True) -> Iterator[str]:
        """Every key with an entry in a dict that moves, once. counts: the entries under no routing key, as lost.

        Of the moment of the call, and safe against changes while it is iterated in pieces: a key that was dropped
        meanwhile may still come, and has no entries then. An entry under no routing key is lost to its owner; see
        `onelane.state.lost`.
        """
        unread = tuple(self._unread)
        return chain(
            unread, self._canonical([(name, tuple(self._dicts[name])) for name in self._moving], set(unread), counts)
        )

    def entries_of(self, key: str, *, counts: bool = True) -> list[KeyedEntry]:
        """The entries of a key, as they leave; those of durable dicts do not: its new owner loads them. A value that
        cannot be encoded is left out, and one with which the key is larger than a message can be. counts: as lost, and
        logs it."""
        if key in self._aside:
            return self._aside[key]
        entries, size = [], 0
        for name, spelling in self._places(self._travelling, key):
            try:
                entry = self._travelling[name].write(spelling, self._dicts[name][spelling])
            except UnwritableValue as error:
                if counts:
                    self.lose("unwritable", error)
                continue
            entries.append(entry)
            size += len(entry.value)
        if key in self._unread:
            written = {(entry.dict, entry.key) for entry in entries}
            unread = [entry for entry in self._unread[key] if (entry.dict, entry.key) not in written]
            entries += unread
            size += sum(len(entry.value) for entry in unread)
        return entries if size <= MOST_BYTES else self._fitting(entries, counts=counts)

    def _fitting(self, entries: list[KeyedEntry], *, counts: bool) -> list[KeyedEntry]:
        """These entries of one key without those for which its message has no room."""
        fitting, size = [], 0
        for entry in entries:
            with_it = size + len(entry.value)
            if with_it <= MOST_BYTES:
                fitting.append(entry)
                size = with_it
            elif counts:
                reason = f"{len(entry.value)} bytes, with {size} of its other entries: a message has {MOST_BYTES}"
                self.lose("unwritable", f"keyed {entry.dict!r}, key {entry.key!r}: {reason}")
        return fitting

    def install(self, key: str, entries: Iterable[KeyedEntry]) -> None:
        """Put the entries of a key that has arrived; all of them, or none.

        Where one of them cannot be read, all are kept as they came, and leave with the key again: for the release that
        wrote them. So are entries of dicts that this release does not have. They are logged and counted.
        """
        entries = list(entries)
        values = []
        try:
            for entry in entries:
                if isinstance(entry.key, UnknownKey):
                    raise UnreadableValue(entry.dict, entry.key, _of_newer_release(key, entry.key))
                if entry.dict in self._moving:
                    values.append((self._dicts[entry.dict], entry.key, self._moving[entry.dict].read(entry)))
                else:
                    self._unread.setdefault(key, []).append(entry)
                    self.lose("no_dict", f"keyed {entry.dict!r}, key {key!r}: no such dict moves in this release")
        except UnreadableValue as error:
            self._unread[key] = entries
            self.lose("unreadable", error)
            return
        for target, spelling, value in values:
            target[spelling] = value

    def set_aside(self, key: str, entries: list[KeyedEntry] | None = None) -> None:
        """Remove the entries of a key from the dicts until `forget`: they leave as they are now, and not with what a
        handler that does not end makes of them. entries: these leave instead."""
        self._aside[key] = self.entries_of(key) if entries is None else entries
        self.clear(key)

    def forget(self, key: str) -> None:
        """Remove a key from every dict that moves, since its new owner has it."""
        self._aside.pop(key, None)
        self._unread.pop(key, None)
        self._owed.discard(key)
        self.clear(key)

    def clear(self, key: str) -> list[str]:
        """Remove what the dicts that move have of a key now; returns their names."""
        places = self._places(self._moving, key)
        for name, spelling in places:
            del self._dicts[name][spelling]
        return [name for name, _ in places]

    def drop_foreign(self, owns: Callable[[str], bool]) -> int:
        """Remove the entries of keys that this life does not own from the dicts that stay; returns their number.

        owns: of a canonical key. Looks at every entry in one go."""
        dropped = 0
        for entries in (self._dicts[name] for name in self._dicts if name not in self._moving):
            for spelling in tuple(entries):
                key = canonical_key(spelling)
                if key is not None and not owns(key):
                    del entries[spelling]
                    dropped += 1
        return dropped

    def on_arrive(self, hook: KeyHook) -> None:
        """See `Shard.on_arrive`."""
        self._arrive_hooks.append(_checked(hook, "on_arrive"))

    def on_leave(self, hook: KeyHook) -> None:
        """See `Shard.on_leave`."""
        self._leave_hooks.append(_checked(hook, "on_leave"))

    def arrived(self, key: str) -> None:
        """Call the hooks for a key that has been installed, before its first turn here."""
        self._owed.discard(key)
        self._call("on_arrive", self._arrive_hooks, key)

    def owe_arrival(self, key: str) -> bool:
        """Have the hooks called for a key as its durable state is loaded, even if there is none. Whether it is to be
        loaded for that now."""
        if self._arrive_hooks:
            self._owed.add(key)
        return bool(self._arrive_hooks)

    def is_owed_arrival(self, key: str) -> bool:
        """Whether the hooks are to be called once the durable state of a key is loaded."""
        return key in self._owed

    @property
    def tells_leaving(self) -> bool:
        """Whether there are hooks for a key that leaves."""
        return bool(self._leave_hooks)

    def leaves(self, key: str) -> None:
        """Call the hooks for a key after its last turn here, before `entries_of` it: a hook may still change them."""
        self._call("on_leave", self._leave_hooks, key)

    def _places(self, names: Iterable[str], key: str) -> list[tuple[str, DictKey]]:
        """Each dict of `names`, and each spelling of the key that it has."""
        spelled, dicts = spellings(key), self._dicts
        return [(name, spelling) for name in names for spelling in spelled if spelling in dicts[name]]

    def _canonical(self, dict_keys: list[tuple[str, tuple[Any, ...]]], seen: set[str], counts: bool) -> Iterator[str]:
        """Each key once, but for those that are `seen` already."""
        for name, spelled in dict_keys:
            for spelling in spelled:
                key = canonical_key(spelling)
                if key is None:
                    if counts:
                        self.lose("no_key", NoRoutingKey(name, spelling))
                elif key not in seen:
                    seen.add(key)
                    yield key

    def _call(self, event: str, hooks: list[KeyHook], key: str) -> None:
        if not hooks:
            return
        spelled = [spelling for _, spelling in self._places(self._dicts, key)]
        named = next(iter((*spelled, *spellings(key))), key)
        for hook in hooks:
            try:
                with in_hook_of(key):
                    hook(named)
            except BaseException:
                log.exception("keyed.hook_failed shard=%s hook=%s", self._shard, event)

    def lose(self, reason: str, error: object) -> None:
        """Count an entry that does not follow its key. reason: the value of `onelane.reason`, one of a few."""
        self._lost.add(1, {"onelane.reason": reason})
        self._logged += 1
        if self._logged <= LOGGED:
            log.error("keyed.entry_lost shard=%s reason=%s %s", self._shard, reason, error)


def _of_newer_release(key: str, spelled: UnknownKey) -> str:
    sender = f"onelane {spelled.release}" if spelled.release else "a newer release"
    return (
        f"the routing key {key!r} is spelled in a way that this release does not know. {sender} has sent its entries;"
        " they are kept as they came, and leave with the key again, for that release"
    )


def _checked(hook: KeyHook, name: str) -> KeyHook:
    if not callable(hook) or inspect.iscoroutinefunction(hook):
        raise BadService(f"{name}: expected a plain function of one key: no turn waits for a coroutine")
    return hook
