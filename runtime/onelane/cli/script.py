"""`onelane.run`: services of a script or a notebook, without a settings file; what `onelane up --inline` is for one."""

import atexit
import inspect
import logging
import os
import signal
import threading
from asyncio import get_running_loop
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from onelane import config
from onelane.core import addresses
from onelane.errors import BadConfig, first_of

if TYPE_CHECKING:
    from onelane.supervisor.supervisor import Supervisor

SCRIPT_APP = "app"
"""The name of the one app."""
NO_ADMIN = "127.0.0.1:0"


class RunningServices:
    """Services that are served by a thread of this process, from `run` until `stop`. Also a context manager."""

    def __init__(self, configuration: config.Config, *, has_admin: bool) -> None:
        self._configuration = configuration
        self._has_admin = has_admin
        self._ready: Future[str] = Future()
        self._ended: Future[None] = Future()
        self._stop: Callable[[], object] = lambda: None
        self._thread = threading.Thread(target=self._serve, name="onelane", daemon=True)

    @property
    def address(self) -> str:
        """Where the services listen, `ip:port`: for `onelane.connect`."""
        return self._ready.result()

    def stop(self) -> None:
        """Let calls in progress finish, and end; a second time it does nothing. A service that calls it does not wait.

        Raises:
            Exception: what has ended the services.
        """
        atexit.unregister(self._end)
        self._stop()
        if threading.current_thread() is self._thread:
            return
        self._thread.join()
        self._ended.result()

    def __enter__(self) -> "RunningServices":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "stopped" if self._ended.done() else f"on {self.address}"
        return f"<{type(self).__name__} {', '.join(self._configuration.apps[SCRIPT_APP].services)} {state}>"

    def _begin(self) -> "RunningServices":
        """Return once they listen; raises what keeps them from it."""
        self._thread.start()
        # A thread that ends with its interpreter would end in the middle of its loop.
        atexit.register(self._end)
        try:
            self._ready.result()
        except BaseException:
            atexit.unregister(self._end)
            raise
        return self

    def _end(self) -> None:
        with suppress(Exception):
            self.stop()

    def _serve(self) -> None:
        try:
            _run_loop(self._configuration, self._tell_ready, has_admin=self._has_admin)
        except BaseException as error:
            (self._ended if self._ready.done() else self._ready).set_exception(error)
        if not self._ended.done():
            self._ended.set_result(None)

    def _tell_ready(self, supervisor: "Supervisor") -> None:
        loop = get_running_loop()

        def stop() -> None:
            # The loop may have ended.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(supervisor.stop_asked.set)

        self._stop = stop
        self._ready.set_result(_address_of(supervisor))


def run(
    services: type | str | Sequence[type | str],
    *,
    listen: str = "127.0.0.1:50051",
    shards: int = 1,
    admin: str | None = None,
    block: bool | None = None,
    **settings: Any,
) -> RunningServices | None:
    """Serve servicer classes from a script or a notebook: all shards in this process, without a settings file.

    A script serves here until Ctrl-C or SIGTERM; then calls finish, and None is returned. Where an event loop runs, as
    in a notebook, a thread serves, and its `RunningServices` is returned once it listens.

    services: classes, of `__main__` too, or their names "package.module:Class". listen: port 0 takes a free port.
    admin: the address of the page and /metrics; by default there is none. block: whether to serve here; by default
    where no event loop runs. settings: as of `[apps.NAME]` in the settings file.

    Raises:
        BadConfig, BadService: a setting or a service has a fault.
        PortTaken: another process listens at an address.
    """
    chosen = [services] if isinstance(services, type | str) else list(services)
    values = {"services": [_name_of(service) for service in chosen], "listen": listen, "shards": shards, **settings}
    configuration = config.parse({"apps": {SCRIPT_APP: values}, "admin": admin or NO_ADMIN}, name="onelane.run")
    configuration.check_addresses()
    if _has_loop() if block is None else not block:
        return RunningServices(configuration, has_admin=admin is not None)._begin()
    _run_loop(configuration, _announce, has_admin=admin is not None)
    return None


def _name_of(service: type | str) -> str:
    if isinstance(service, str):
        return service
    if not inspect.isclass(service):
        raise BadConfig("onelane.run", [f"services: expected servicer classes, got {service!r}"])
    if "." in service.__qualname__:
        raise BadConfig("onelane.run", [f"services: {service.__qualname__} is no class of a module, but of a function"])
    return f"{service.__module__}:{service.__qualname__}"


def _has_loop() -> bool:
    try:
        get_running_loop()
    except RuntimeError:
        return False
    return True


def _run_loop(configuration: config.Config, on_ready: "Callable[[Supervisor], object]", *, has_admin: bool) -> None:
    """Serve in a loop of this thread until it is asked to stop. Raises as `Supervisor.run`."""
    import anyio

    from onelane.telemetry import logs

    # OpenTelemetry's API reads it when it is first imported.
    os.environ.setdefault("OTEL_PYTHON_CONTEXT", "onelane")
    if not logging.getLogger().handlers:
        logs.install(os.environ)
    try:
        anyio.run(_serve, configuration, on_ready, has_admin, backend_options={"use_uvloop": True})
    except BaseExceptionGroup as group:
        raise first_of(group) from None


async def _serve(configuration: config.Config, on_ready: "Callable[[Supervisor], object]", has_admin: bool) -> None:
    import anyio

    from onelane.cli import exports
    from onelane.supervisor.admin import server
    from onelane.supervisor.inline import InlineLauncher
    from onelane.supervisor.supervisor import Supervisor

    environment: Mapping[str, str] = os.environ
    supervisor = Supervisor(
        configuration,
        InlineLauncher(),
        app_dir=str(Path.cwd()),
        sinks=exports.sinks(configuration, environment),
        telemetry=exports.telemetry_options(environment),
    )
    async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        if threading.current_thread() is threading.main_thread():
            tasks.start_soon(_handle_signals, supervisor)
        if has_admin:
            await stack.enter_async_context(server.serving(supervisor))
        await supervisor.run(on_ready=lambda: on_ready(supervisor))
        tasks.cancel_scope.cancel()


async def _handle_signals(supervisor: "Supervisor") -> None:
    """SIGINT or SIGTERM lets calls finish; the second of them ends them."""
    import anyio

    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            if supervisor.stop_asked.is_set():
                supervisor.kill()
            supervisor.stop_asked.set()


def _announce(supervisor: "Supervisor") -> None:
    from onelane.cli.standard_streams import announce

    announce(f"onelane: ready on {_address_of(supervisor)}; Ctrl-C stops")


def _address_of(supervisor: "Supervisor") -> str:
    return addresses.reachable(supervisor.apps[0].settings.listen)
