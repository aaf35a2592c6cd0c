"""The servicers of a shard: the app's, the runtime's own, gRPC's health checks and server reflection.

Promises: a servicer that cannot be served, and a configured key or turn of an unknown method, is refused before the
shard listens; all faulty servicers are named at once. A servicer's `async def start(self)` ends before the shard
listens; its `async def stop(self)` begins once no call is in progress, and runs where `start` has succeeded.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from onelane import plugins
from onelane.config import App
from onelane.core.auth_settings import AuthSettings
from onelane.core.permissions import matches, pattern_for
from onelane.errors import BadService, ServiceRaised, located
from onelane.lane.lane import Lane
from onelane.server import interceptors, methods, user_code
from onelane.server.methods import Method
from onelane.shard.shard import Shard

log = logging.getLogger("onelane.shard")
STORE_HEALTH = "onelane.state"
"""The name under which health checks ask for the store of durable state."""


class Services:
    """The servicers of one shard, and their methods on its lane."""

    def __init__(self, lane: Lane, shard: Shard, settings: App, *, builtin: Sequence[object]) -> None:
        """builtin: the runtime's own servicers, to which interceptors, `keys` and `turns` do not apply."""
        self.servicers: list[object] = []
        """One object per configured service."""
        self._lane = lane
        self._shard = shard
        self._settings = settings
        self._builtin = builtin
        self._started: list[object] = []
        """Those whose `start` has succeeded, in order."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._health: Any = None
        """grpcio's health servicer, where the app has one."""

    def load(self) -> None:
        """Make every servicer, and put all methods on the lane.

        Raises:
            BadService: a servicer or an interceptor cannot be made or served, or `keys` or `turns` name an unknown
                method. Its text begins with the place in the file.
        """
        place = f"apps.{self._shard.app}"
        configured_keys, configured_turns = dict(self._settings.keys), dict(self._settings.turns)
        self._load_servicers(place, configured_keys, configured_turns)
        for servicer in self._builtin:
            self._add_all(methods.methods_of(servicer, configured={}))
        if self._settings.health:
            self._add_health()
        if self._settings.serves_reflection:
            self._add_reflection()
        for table, configured in (("keys", configured_keys), ("turns", configured_turns)):
            with located(f"{place}.{table}"):
                self._check_configured(configured)
        if self._settings.auth is not None:
            with located(f"{place}.auth.methods"):
                self._check_permissions(self._settings.auth)

    async def start(self) -> None:
        """Await each servicer's `start`, in the order of the settings. Where one fails, those before it are stopped.

        Raises:
            BadService: they take longer than `start_s` together, or one is cancelled.
            Exception: what a `start` raises.
        """
        try:
            await self._start_each()
        except BaseException:
            await self.stop()
            raise

    async def _start_each(self) -> None:
        limit_s = self._settings.start_s
        until = asyncio.get_running_loop().time() + limit_s
        for servicer in self.servicers:
            if (start := _hook(servicer, "start")) is not None:
                try:
                    await _run_hook(start, until)
                except _LateHook:
                    raise BadService(f"{_name(servicer)}: start() did not end within start_s, {limit_s:g} s") from None
                except _CancelledHook as error:
                    raise BadService(f"{_name(servicer)}: start() was cancelled by itself") from error.__cause__
            self._started.append(servicer)

    async def stop(self) -> None:
        """Await the `stop` of each servicer that has been started, in the reverse order; each ends within what is left
        of `stop_s`. A failure is logged, and the next one is stopped."""
        until = asyncio.get_running_loop().time() + self._settings.stop_s
        while self._started:
            servicer = self._started.pop()
            if (stop := _hook(servicer, "stop")) is not None:
                await self._stop_one(servicer, stop, until)

    async def _stop_one(self, servicer: object, stop: Callable[[], Awaitable[object]], until: float) -> None:
        try:
            await _run_hook(stop, until)
        except _LateHook as error:
            reason = f"TimeoutError: it did not end within stop_s, {self._settings.stop_s:g} s, of all services"
            self._tell_stop_failed(servicer, error, reason)
        except _CancelledHook as error:
            self._tell_stop_failed(servicer, error, "CancelledError: by itself")
        except Exception as error:
            self._tell_stop_failed(servicer, error, user_code.summary(error))

    def _tell_stop_failed(self, servicer: object, error: Exception, reason: str) -> None:
        log.error(
            "service.stop_failed shard=%s service=%s at=%s error=%s",
            self._shard.name,
            _name(servicer),
            user_code.line_of(error),
            reason,
        )

    async def set_health(self, *, serving: bool) -> None:
        """Answer health checks of every service with SERVING or NOT_SERVING."""
        if self._health is None:
            return
        from grpc_health.v1.health_pb2 import HealthCheckResponse

        for name in {"", *self._names()}:
            await self._health.set(name, HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING)
        if self._shard.durable_state is not None:
            store = self._shard.durable_state.health
            store.on_change = self._tell_store
            await self._set_store_health(works=store.works)

    async def end_health(self) -> None:
        """Answer all health checks with NOT_SERVING from now on, whatever is set later."""
        if self._health is not None:
            await self._health.enter_graceful_shutdown()

    def _tell_store(self, works: bool) -> None:
        task = asyncio.get_running_loop().create_task(self._set_store_health(works=works))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _set_store_health(self, *, works: bool) -> None:
        """Of the store alone: that clients leave a shard whose store fails moves none of its keys (decision 0024)."""
        from grpc_health.v1.health_pb2 import HealthCheckResponse

        await self._health.set(STORE_HEALTH, HealthCheckResponse.SERVING if works else HealthCheckResponse.NOT_SERVING)

    def _load_servicers(
        self, place: str, configured_keys: Mapping[str, str], configured_turns: Mapping[str, str]
    ) -> None:
        with located(f"{place}.interceptors"):
            chain = interceptors.Chain(interceptors.load(self._settings.interceptors))
        faults: list[BadService] = []
        for plug in self._settings.services:
            try:
                with located(f"{place}.services"):
                    servicer_class = methods.servicer_class(plug)
                    with located(plug):
                        self._load_servicer(servicer_class, chain, configured_keys, configured_turns)
            except BadService as error:
                faults.append(error)
        if faults:
            raise _all_in_one(faults)

    def _load_servicer(
        self,
        servicer_class: type,
        chain: interceptors.Chain,
        configured_keys: Mapping[str, str],
        configured_turns: Mapping[str, str],
    ) -> None:
        servicer = methods.make(servicer_class, self._shard)
        self.servicers.append(servicer)
        check_hooks(servicer)
        for method in methods.methods_of(
            servicer, configured=configured_keys, turns=configured_turns, max_key_bytes=self._settings.max_key_bytes
        ):
            if method.path in self._lane.entries:
                raise BadService(f"{method.name} is served already by another service of this app")
            self._lane.add(chain.around(method))

    def _add_health(self) -> None:
        from grpc_health.v1 import health, health_pb2_grpc

        self._health = health.aio.HealthServicer()
        add = health_pb2_grpc.add_HealthServicer_to_server
        self._add_all(methods.methods_of(self._health, configured={}, add=add))

    def _add_reflection(self) -> None:
        # Not by way of its module `reflection`: that loads grpcio's core.
        from grpc_reflection.v1alpha import _async, reflection_pb2_grpc

        servicer = _async.ReflectionServicer(sorted({*self._names(), "grpc.reflection.v1alpha.ServerReflection"}))
        add = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
        for method in methods.methods_of(servicer, configured={}, add=add):
            self._lane.add(method)
            # grpcio ships v1alpha alone; newer clients ask for v1, which has the same messages.
            self._lane.add(replace(method, path=method.path.replace("v1alpha", "v1")))

    def _add_all(self, served: Sequence[Method]) -> None:
        for method in served:
            self._lane.add(method)

    def _check_configured(self, configured: Mapping[str, str]) -> None:
        methods_served = {entry.method.name for entry in self._lane.entries.values()}
        known = methods_served | {f"{name}/*" for name in self._names()}
        if unknown := sorted(set(configured) - known):
            from difflib import get_close_matches

            names = sorted(known)
            near = [close for name in unknown for close in get_close_matches(name, names, n=1)]
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise BadService(f"no service has {unknown}{hint}")

    def _check_permissions(self, auth: AuthSettings) -> None:
        """Refuse patterns that name no method: the one that they were meant for would have the roles of another."""
        entries = self._lane.entries.values()
        names = [entry.method.name for entry in entries]
        # The runtime's own services may be off here: reflection is on loopback addresses alone.
        patterns = [pattern for pattern in auth.methods if not pattern.startswith(("grpc.", "onelane."))]
        if unused := sorted(p for p in patterns if p != "*" and not any(matches(p, name) for name in names)):
            raise BadService(f"no service has {unused}")
        own = sorted(entry.method.name for entry in entries if not entry.is_ours)
        closed = [name for name in own if pattern_for(name, auth.methods) is None]
        if closed:
            log.warning("auth.closed shard=%s nobody may call %s", self._shard.name, " ".join(closed[:20]))

    def _names(self) -> Iterator[str]:
        """`pkg.Service` of every method that the lane serves."""
        return (entry.method.name.rpartition("/")[0] for entry in self._lane.entries.values())


def _hook(servicer: object, name: str) -> Callable[[], Awaitable[object]] | None:
    """The servicer's `start` or `stop`; None where it has none, or where an RPC is called so."""
    hook = getattr(servicer, name, None)
    is_rpc = any(name in vars(base) for base in type(servicer).__mro__ if methods.is_generated(base))
    return None if hook is None or is_rpc else hook


def check_hooks(servicer: object) -> None:
    """Refuse a `start` or `stop` that a shard cannot await.

    Raises:
        BadService: it is no coroutine function, or takes arguments.
    """
    for name in ("start", "stop"):
        hook = _hook(servicer, name)
        if hook is not None and not (inspect.iscoroutinefunction(hook) and not inspect.signature(hook).parameters):
            raise BadService(
                f"{_name(servicer)}.{name}: expected `async def {name}(self)`, which is called when the shard {name}s; "
                "a method of another kind needs another name"
            )


def _name(servicer: object) -> str:
    return f"{type(servicer).__module__}:{type(servicer).__qualname__}"


class _LateHook(Exception):
    """It did not end in time, and was cancelled."""


class _CancelledHook(Exception):
    """It was cancelled by its own code."""


async def _run_hook(hook: Callable[[], Awaitable[object]], until: float) -> None:
    """Await a `start` or `stop` in a task of its own, so that its own cancellation can be told from that of this."""

    async def run() -> None:
        try:
            await hook()
        except (Exception, asyncio.CancelledError):
            raise
        except BaseException as error:
            # SystemExit would end the loop, on which inline all shards and their supervisor are.
            raise plugins.raised("", error) from error

    loop = asyncio.get_running_loop()
    task = loop.create_task(run())
    try:
        await asyncio.wait([task], timeout=max(0.0, until - loop.time()))
        if not task.done():
            raise _LateHook
    finally:
        task.cancel()
    try:
        task.result()
    except asyncio.CancelledError as error:
        raise _CancelledHook from error


def _all_in_one(faults: Sequence[BadService]) -> BadService:
    """One error with the texts of all; its cause is what the code of the first service that raised has raised."""
    text = "\n".join(map(str, faults))
    for fault in faults:
        if isinstance(fault, ServiceRaised):
            error = ServiceRaised(text)
            error.__cause__ = fault.__cause__
            return error
    return BadService(text)
