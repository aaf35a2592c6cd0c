"""The shard that a service is given: plain state that no other thread touches, calls, timers, topics and resources."""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import copy_context
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.message import Message

from onelane.client.options import APP_DIALLING, Dialling
from onelane.client.peer import DEFAULT_SERVICE_CONFIG
from onelane.client.ring_channel import Channel
from onelane.config import App
from onelane.errors import BadService
from onelane.lane.lane import Lane
from onelane.lane.turn_queue import HeldTurn
from onelane.shard.assertions import Assertions
from onelane.shard.durable_state import DurableState, MakeStore
from onelane.shard.offload.offload import Offload
from onelane.shard.pubsub import PubSub, Subscription
from onelane.shard.reminders import Reminders
from onelane.shard.settings import build_settings
from onelane.shard.siblings import Answer, MethodRef, SiblingCalls
from onelane.shard.timers import Alarms, Key, Timer, TimerFunction, Timers
from onelane.shard.topics import Lost
from onelane.state.codecs import Migration, ServiceCodec
from onelane.state.keyed import KeyedDicts, KeyHook
from onelane.state.reminder import Reminder
from onelane.telemetry.stats import Stats
from onelane.telemetry.tracer import Tracer

log = logging.getLogger("onelane.shard")
M = TypeVar("M", bound=Message)
R = TypeVar("R")
Req = TypeVar("Req", bound=Message)
Rep = TypeVar("Rep")
S = TypeVar("S")


class Shard:
    """Everything that a service may use of its shard. All of it belongs to one lane, so none of it needs a lock."""

    def __init__(
        self,
        *,
        app: str,
        name: str,
        index: int,
        life: int = 0,
        settings: App,
        peers: dict[str, str],
        stats: Stats,
        tracer: Tracer,
        alarms: Alarms | None = None,
        dialling: Dialling = APP_DIALLING,
        assertions: Assertions | None = None,
        opens_resources: bool = True,
        make_store: MakeStore | None = None,
    ) -> None:
        self.app = app
        self.name = name
        """Unique in the app, for example `lobby-0`."""
        self.index = index
        """From 0."""
        self.stats = stats
        """Counters, gauges and histograms of this shard; moved out and added up each tick."""
        self.config: Any = build_settings(settings.config_type, settings.config, app=app)
        """The app's own settings, `[apps.NAME.config]`, as `config_type`; replaced whole between two ticks, never
        changed."""
        self._followers: list[Callable[[Any, Any], object]] = []
        self._settings = settings
        self._peers = peers
        self._tracer = tracer
        self._lane: Lane
        self._sibling_calls: SiblingCalls
        self._pubsub: PubSub
        self._reminders: Reminders
        self.keyed_dicts = KeyedDicts(name, stats, app=app)
        """For the hand-over of keys; a service uses `keyed`."""
        self.durable_state: DurableState | None = None
        """None where no dict is durable."""
        self._life = life
        self._make_store = make_store
        self._offloads: list[Offload[Any]] = []
        self._channels: dict[tuple[str, bool], Channel] = {}
        """Name of an app or peer, whether calls are on this app's own account → its channel."""
        self._assertions = assertions or Assertions(app, (), b"")
        self._dialling = dialling
        self._opens_resources = opens_resources
        self._timers = Timers(name, limit=settings.max_timers, stats=stats, turn=self.turn, alarms=alarms)
        self._ends = [self._timers.aclose]
        """End what acts by itself, at the end of the shard."""

    def on_config(self, follower: Callable[[Any, Any], object]) -> None:
        """Call `follower(old, new)` each time `config` has been replaced."""
        self._followers.append(follower)

    def configure(self, new: Any) -> None:
        """Replace `config`, and call its followers."""
        old, self.config = self.config, new
        for follower in self._followers:
            try:
                follower(old, new)
            except BaseException:
                log.exception("config.follower_failed shard=%s", self.name)

    def keyed(
        self,
        name: str,
        kind: type[S],
        *,
        moves: bool = True,
        durable: bool = False,
        idle_s: float | None = None,
        max_resident: int | None = None,
        codec: ServiceCodec | None = None,
        version: int = 1,
        migrate: Mapping[int, Migration] | None = None,
    ) -> dict[Any, S]:
        """A plain dict whose keys are routing keys and whose values are `kind`. One for each name.

        A key's entries follow it to another process, and end with the process that crashes. Give each value one owner:
        of an object that is reached from elsewhere too, a copy arrives.
        kind: what `msgspec` encodes with its type, a protobuf message, or anything with `codec`. Between releases,
        fields may be added with defaults, and removed.
        durable: keep them in the app's store (`[apps.NAME.state]`). They are loaded before the first turn of their key,
        and written after each turn that has changed them; the answer leaves when that is on disk. They are to be
        touched in turns of their own key alone.
        idle_s: forget a durable entry, on disk too, that was not used for so many seconds; a little later.
        max_resident: keys whose durable entries stay in memory, about; of several dicts the smallest number counts. The
        least recently used are loaded again when they are used.
        moves: False for what cannot leave the process (queues, connections): dropped when its key leaves. Never strict.
        version, migrate: for other changes. `migrate={1: fn}` lifts values of version 1 to version 2: `fn` is given
        builtins (a dict for an object with fields) and returns them; of protobuf and of a `codec`, bytes.

        Raises:
            BadService: the kind cannot be encoded (names its fields), or the name is declared twice, and otherwise.
        """
        entries = self.keyed_dicts.declare(
            name,
            kind,
            moves=moves,
            durable=durable,
            idle_s=idle_s,
            max_resident=max_resident,
            codec=codec,
            version=version,
            migrate=migrate,
            strict=moves and self._settings.strict,
        )
        if durable:
            self.durable_state = self.durable_state or self._keep_state()
            self.durable_state.bound(name, idle_s=idle_s, max_resident=max_resident)
        return entries

    def _keep_state(self) -> DurableState:
        state = DurableState(
            self.keyed_dicts,
            self._lane,
            self.stats,
            self._settings.state,
            app=self.app,
            life=self._life,
            make_store=self._make_store,
        )
        for channel in self._channels.values():
            state.kept.attend(channel.peer)
        self._reminders.keep(state)
        return state

    def on_arrive(self, fn: KeyHook) -> None:
        """Call `fn(key)`, on the lane, before the first turn of a key that has arrived from another process.

        It must not wait. An exception is logged, and the key arrives."""
        self.keyed_dicts.on_arrive(fn)

    def on_leave(self, fn: KeyHook) -> None:
        """Call `fn(key)`, on the lane, after the last turn of a key here; its entries leave as `fn` leaves them.

        It must not wait. An exception is logged, and the key leaves."""
        self.keyed_dicts.on_leave(fn)

    def stub(
        self,
        stub: Callable[[grpc.aio.Channel], S],
        *,
        to: str,
        on_own_account: bool = False,
        reopen: bool | None = None,
        marks: bool = False,
    ) -> S:
        """A generated stub of the app `to`, over one channel per lane.

        Its calls carry the trace, what is left of the deadline and, where the `auth.apps` of that app names this one,
        the identity of the client of the call in progress. on_own_account: not that, but this app's own.
        reopen, marks: of server streams whose key moves to another shard, see `Channel.with_streams`.

        Raises:
            BadService: no app or peer has that name.
        """
        if to not in self._peers:
            name = getattr(stub, "__qualname__", stub)
            raise BadService(f"stub {name}: no app or peer is called {to!r}; known are {sorted(self._peers)}")
        if (to, on_own_account) not in self._channels:
            deadline_s = self._settings.deadline_s
            channel = self._channels[to, on_own_account] = Channel(
                self._peers[to],
                deadline_s=deadline_s,
                name=to,
                tracer=self._tracer,
                dialling=self._dialling,
                service_config=self._settings.stubs.get(to, DEFAULT_SERVICE_CONFIG),
                stats=self.stats,
                assert_identity=self._assertions.writer(to, on_own_account=on_own_account),
            )
            if self.durable_state is not None:
                self.durable_state.kept.attend(channel.peer)
        return stub(self._channels[to, on_own_account].with_streams(reopen=reopen, marks=marks))

    def turn(self, key: Key) -> AbstractAsyncContextManager[None]:
        """Hold the turn of a key inside `async with`: meanwhile no call of that key runs, but those made in there.

        For streams and tasks; a unary call holds the turn of its own key already, and may enter it again.

        Raises, when it is entered:
            ForeignKey: another shard owns the key. KeyMoves: it moves there now; a call that it ends is UNAVAILABLE.
            Overloaded: too many calls wait for it.
        """
        return HeldTurn(self._lane.queue, key)

    def join(self, lane: Lane, sibling_calls: SiblingCalls, pubsub: PubSub, reminders: Reminders) -> None:
        """Set what is made after the shard: its lane, and the way to its siblings. Called once, before any service."""
        self._lane, self._sibling_calls, self._pubsub, self._reminders = lane, sibling_calls, pubsub, reminders
        self._ends.append(reminders.aclose)

    def every(self, seconds: float, fn: TimerFunction) -> Timer:
        """Call `fn`, plain or async, every so many seconds from now on, until `cancel()` or the shard's end.

        The n-th run is due at now + n · seconds, however long the others took. Runs never overlap: a run whose time
        passed while the lane or the run before was busy is skipped, and counted (`Timer.skipped`,
        `onelane.timer.skips`). An exception is logged, and the timer goes on.

        Raises:
            Overloaded: the shard has `max_timers` timers.
        """
        return self._timers.every(seconds, fn)

    def later(self, key: Key, seconds: float, fn: TimerFunction) -> Timer:
        """Call `fn`, plain or async, once, in so many seconds or a little later, as a turn of `key`.

        Until it begins it is listed by `timers`. It ends with the shard, and when the shard loses the key.

        Raises:
            LongKey: the key is longer than the app allows.
            ForeignKey: another shard owns the key.
            Overloaded: the shard has `max_timers` timers.
        """
        self._lane.router.own_key(key, "the key of the timer")
        return self._timers.later(key, seconds, fn)

    def timers(self, key: Key) -> tuple[Timer, ...]:
        """The timers of `key` that have not begun, in the order in which they were set."""
        return self._timers.of(key)

    async def remind(
        self,
        key: Key,
        method: MethodRef[Req, Rep],
        request: Req,
        *,
        at: float | datetime | None = None,
        after_s: float | None = None,
        every_s: float | None = None,
        id: str = "",
    ) -> Reminder:
        """Call a unary method of this app with `request` at a later time, as a turn of `key`: a timer that is data. It
        is kept with its key, and so survives crashes and deploys and follows the key to another shard.

        Inside a turn of the key it takes effect with that turn; elsewhere it is on disk when this returns. It runs at
        its time or a little later; what became due while nothing ran does so at the next start, in order. A run that
        fails is repeated after a back-off, at most `max_reminder_runs` times. It runs at least once, and its changes of
        durable state happen once; all runs of one due time have the same `idempotency-key`.

        at: Unix time, or a datetime with a time zone. after_s: seconds from now, in its place. every_s: again and
        again, from `at` or in so many seconds on; periods that have passed are one run. id: takes the place of an
        earlier reminder of the key with this id; by default the method's name.

        Raises:
            Misuse: a time in the past, or none; `every_s` below 1; or as of `call`.
            BadService: the method is unknown, has no key, or streams; or the app keeps no state.
            TooManyReminders: the key has `max_reminders_per_key`.
            NotKept, AioRpcError, DeadlinePassed: the owner of the key could not be reached, or not keep it.
        """
        return await self._reminders.set(key, method, request, at=at, after_s=after_s, every_s=every_s, name=id)

    async def forget_reminder(self, key: Key, id: str) -> bool:
        """Forget a reminder; whether there was one. A run that has begun goes on to its end.

        Raises: as `remind`."""
        return await self._reminders.forget(key, id)

    async def reminders(self, key: Key) -> tuple[Reminder, ...]:
        """The reminders of `key`, the first to run first.

        Raises: as `remind`."""
        return await self._reminders.list(key)

    async def call(
        self,
        key: Key,
        method: MethodRef[Req, Rep],
        request: Req,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - a call's, as in every stub
    ) -> Rep:
        """Call a unary method of this app in the shard that owns `key`.

        method: `LobbyServicer.Join`, or its name `"arena.v1.Lobby/Join"`. timeout: seconds; else `deadline_s`, and
        never more than what is left of the call in progress. A key whose turn this call holds may be entered again.

        Raises:
            grpc.aio.AioRpcError: as of any call.
            BadService: no service of this app has the method, or it streams.
            Misuse: the key is empty, or not the one in the request; or the request is not the method's message.
        """
        return await self._sibling_calls.call(key, method, request, timeout)

    async def call_each(
        self,
        method: MethodRef[Req, Rep],
        request: Req,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - a call's, as in every stub
    ) -> list[Answer[Rep]]:
        """Call a unary method that is ANY in every shard of this app, at once and with one deadline.

        One answer per shard, replies and failures side by side, in the order of the shards. A failure does not raise.

        Raises:
            BadService: no service of this app has the method, it streams, or it has a key.
        """
        return await self._sibling_calls.call_each(method, request, timeout)

    def publish(self, topic: str, message: Message, *, at_once: bool = False) -> None:
        """Send `message` to the subscribers of `topic` in every shard of this app, once, in the order of publishing.

        It leaves in one batch with the other messages of the tick, or at once; in a turn of a key with durable state,
        once the turn is on disk, and not at all where that fails. A shard that is down misses it.

        Raises:
            Overloaded: `max_published` messages wait for the tick already.
        """
        gate = self._lane.kept
        if gate is None or not gate.in_turn:
            self._pubsub.publish(topic, message, at_once=at_once)
            return
        copied = type(message)()
        copied.CopyFrom(message)
        gate.defer(partial(copy_context().run, partial(self._pubsub.publish, topic, copied, at_once=at_once)))

    def subscribe(self, topic: str, kind: type[M], then: Callable[[M | Lost], None] | None = None) -> Subscription[M]:
        """The messages of `kind` that are published on `topic` from now on; others are left out.

        Iterate over it (`async for`), or let it call `then`, which must not wait. A subscriber that lags behind by more
        than `max_lag` messages loses the oldest, and gets a `Lost` in their place.
        """
        return self._pubsub.subscribe(topic, kind, then)

    def offload(
        self,
        factory: Callable[[], R],
        *,
        name: str = "",
        capacity: int = 1000,
        close: Callable[[R], None] | None = None,
        pool: int = 1,
        replace_after_s: float | None = None,
    ) -> Offload[R]:
        """One blocking resource on a worker thread of its own, behind a queue of `capacity` jobs, run in order.

        `factory` runs on that thread; so does `close`, by default the resource's own `close()`, when the shard ends.
        pool: so many worker threads, each with a resource of its own, for resources that may be used in parallel; jobs
        go to whichever thread is free, and so in no promised order.
        replace_after_s: a job that runs longer fails (DEADLINE_EXCEEDED), and another worker thread with a new resource
        takes over the queue. The old thread may still run its job beside the new one, so neither the order nor one job
        at a time is promised then; by default no worker thread is replaced, and a hung one blocks its queue.

        Counted: the histograms `onelane.offload.wait` and `onelane.offload.duration` (s), the counters
        `onelane.offload.hung`, `.replaced` and `.refused`, the gauge `onelane.queue.depth`.

        Raises:
            BadService: another offload has this name.
            ValueError: a number is out of its range.
        """
        name = name or f"{len(self._offloads)}"
        if name in {other.name for other in self._offloads}:
            raise BadService(f"two offloads of {self.name} are called {name!r}; their stats would be one")
        if not self._opens_resources:
            factory, close = _no_resource, _close_nothing
        offload: Offload[R] = Offload(
            factory,
            name=name,
            capacity=capacity,
            tracer=self._tracer,
            stats=self.stats,
            close=close,
            pool=pool,
            replace_after_s=replace_after_s,
        )
        self._offloads.append(offload)
        return offload

    async def wait_ready(self) -> None:
        """Open the store of durable state, and wait until every worker thread has made its resource; raises what these
        raised."""
        if self.durable_state is None and self._settings.state.reminders:
            self.durable_state = self._keep_state()
        if self.durable_state is not None:
            await self.durable_state.start()
            self.every(self.durable_state.idle_keys.check_s, self.durable_state.idle_keys.check)
        for offload in self._offloads:
            await offload.wait_ready()

    async def aclose(self) -> None:
        """End timers, channels and resources, each whatever becomes of the others."""
        channels = [channel.close for channel in self._channels.values()]
        state = [] if self.durable_state is None else [self.durable_state.aclose]
        for close in (
            *self._ends,
            *state,
            *channels,
            *(offload.aclose for offload in self._offloads),
        ):
            try:
                await close()
            except Exception:
                log.exception("shard.part_not_ended shard=%s", self.name)

    def drop_foreign(self, owns: Callable[[str], bool]) -> None:
        """Drop what keys that have left leave behind: timers, and entries in dicts that do not move. owns: of a key
        (canonical text), whether this process owns it."""
        self.keyed_dicts.drop_foreign(owns)
        self._timers.drop_foreign(owns)

    def keyed_counts(self) -> dict[str, int]:
        return self.keyed_dicts.counts()


def _no_resource() -> Any:
    """The resource of a worker thread in a shard that is built only to check its services."""


def _close_nothing(_: Any) -> None: ...
