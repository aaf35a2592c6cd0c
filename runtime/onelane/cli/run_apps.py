"""Runs the apps of a file until a signal: what `onelane up` and `onelane serve` do once their arguments are read."""

import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from onelane import config
from onelane.cli import init_process, standard_streams
from onelane.cli.admin_client import printable
from onelane.errors import OnelaneError, PortTaken, first_of
from onelane.secret_files import kept_from_children
from onelane.supervisor import descriptors, server_process
from onelane.supervisor.forks import ForkServer
from onelane.supervisor.launcher import Launcher, ProcessLauncher
from onelane.supervisor.orphan_guard import OrphanGuard
from onelane.telemetry import logs

if TYPE_CHECKING:
    from onelane.supervisor.supervisor import Supervisor

log = logging.getLogger("onelane.cli")
ConfigReader = Callable[[Mapping[str, str]], config.Config]
"""Reads a file, overridden by the variables of an environment."""
ORPHAN_S = 5.0
"""How long a shard may live on without its supervisor, beside what its services may take to stop."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How `up` and `serve` run a file."""

    file: Path
    inline: bool
    accepts_missing_state: bool
    watched: tuple[Path, ...] = ()
    """Folders whose changes are followed; empty for none."""

    def may_change(self, error: BaseException) -> bool:
        """Whether a change of what is followed may mend why the apps did not start."""
        is_of_files = isinstance(error, OnelaneError) and not isinstance(error, PortTaken)
        return bool(self.watched) and self.file.exists() and is_of_files


def run(read: ConfigReader, app_dir: Path, options: RunOptions, *, as_json: bool) -> None:
    """read: reads the file, now and at each reload."""
    init_process.hand_over_to_child()
    announce = Announcer(as_json=as_json)
    with kept_from_children() as environment:
        try:
            with ExitStack() as on_failure:
                _run_in(environment, lambda: read(environment), app_dir, options, announce, on_failure)
                on_failure.pop_all()
        except (OnelaneError, BaseExceptionGroup) as raised:
            error = first_of(raised) if isinstance(raised, BaseExceptionGroup) else raised
            if not options.may_change(error):
                raise
            _start_anew_on_change(error, options, environment, announce)
    announce("stopped", "stopped")


def _start_anew_on_change(
    error: BaseException, options: RunOptions, environment: Mapping[str, str], announce: "Announcer"
) -> None:
    """Run the command line anew, in this process, once a file has changed. Returns if a signal comes first."""
    from onelane.cli.reloading import wait_for_change

    if (unused := server_process.take_early()) is not None:
        unused.kill()

    def announce_waiting() -> None:
        announce("not started", f"not started, waiting for a change: {printable(str(error))}", reason=str(error))

    if wait_for_change(options.file, options.watched, announce_waiting):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], dict(environment))


def _run_in(
    environment: Mapping[str, str],
    read: Callable[[], config.Config],
    app_dir: Path,
    options: RunOptions,
    announce: "Announcer",
    on_failure: ExitStack,
) -> None:
    from onelane.cli.check import check_cluster, warnings_of

    first = read()
    first.check_addresses()
    check_cluster(first)
    logs.install(environment)
    for warning in warnings_of(first, environment):
        log.warning("config.warning %s", warning)
    folder = str(app_dir.resolve())
    descriptors.raise_limit()
    stop_s = max(app.stop_s for app in first.apps.values())
    if not options.inline:
        launcher: Launcher = _process_launcher(ORPHAN_S + stop_s, on_failure)
    else:
        # As `python -m` does for a shard in a process of its own.
        sys.path.append(os.getcwd())
        # OpenTelemetry's API reads this when it is first imported. For shards in processes, shard/process.py sets it.
        os.environ.setdefault("OTEL_PYTHON_CONTEXT", "onelane")
        from onelane.supervisor.inline import InlineLauncher

        launcher = InlineLauncher()
    serve = partial(_serve, first, read, environment, folder, launcher, announce, options)
    anyio.run(serve, backend_options={"use_uvloop": True})


def _process_launcher(orphan_s: float, on_failure: ExitStack) -> ProcessLauncher:
    """It starts the fork server at once, which imports while this process does."""
    fork_server, guard = ForkServer(), OrphanGuard(orphan_s)
    on_failure.callback(fork_server.close)
    on_failure.callback(guard.wait)
    on_failure.callback(guard.close)
    with suppress(OSError):
        # The first launch tells.
        fork_server.begin()
    return ProcessLauncher(orphan_guard=guard, fork_server=fork_server)


class Announcer:
    """Prints the events of `up`, each at once: a sentence, or with --json an object in one line."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def __call__(self, event: str, sentence: str, **fields: str | float) -> None:
        text = json.dumps({"event": event, **fields}) if self._as_json else f"onelane: {sentence}"
        standard_streams.announce(text)


async def _serve(
    first: config.Config,
    read: Callable[[], config.Config],
    environment: Mapping[str, str],
    app_dir: str,
    launcher: Launcher,
    announce: Announcer,
    options: RunOptions,
) -> None:
    from onelane.cli import exports
    from onelane.supervisor.admin import server
    from onelane.supervisor.supervisor import Supervisor
    from onelane.supervisor.systemd import notify

    supervisor = Supervisor(
        first,
        launcher,
        app_dir=app_dir,
        sinks=exports.sinks(first, environment),
        telemetry=exports.telemetry_options(environment),
        read=read,
        accepts_missing_state=options.accepts_missing_state,
        cluster=first.cluster,
    )
    ready = anyio.Event()
    async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        tasks.start_soon(_handle_signals, supervisor)
        tasks.start_soon(_announce_stop, supervisor, announce)
        if options.watched:
            from onelane.cli.reloading import CodeFollower

            tasks.start_soon(CodeFollower(supervisor, options.file, options.watched, announce).run, ready)
        address = await stack.enter_async_context(server.serving(supervisor))

        def announce_ready() -> None:
            for app in supervisor.apps:
                listen, count = app.settings.listen, len(app.shards)
                sentence = f"{app.name} ready on {listen} ({count} shards)"
                announce("app ready", sentence, app=app.name, listen=listen, shards=count)
            announce("ready", f"ready, admin on {address}", admin=address.removeprefix("http://"))
            notify("READY=1")
            ready.set()

        await supervisor.run(on_ready=announce_ready)
        notify("STOPPING=1")
        tasks.cancel_scope.cancel()


async def _announce_stop(supervisor: "Supervisor", announce: Announcer) -> None:
    """Say that the apps stop, and how long that may take."""
    await supervisor.stop_asked.wait()
    calls, drain_s = supervisor.calls_in_progress(), sum(app.settings.drain_s for app in supervisor.apps)
    sentence = (
        f"stopping: {calls} call(s) in progress have up to {drain_s:g} s to finish; a second signal ends them at once"
    )
    announce("stopping", sentence, calls_in_progress=calls, at_most_s=drain_s)


async def _handle_signals(supervisor: "Supervisor") -> None:
    """SIGTERM or SIGINT drains all apps; the second of them kills all shards. SIGHUP reloads the services' settings,
    SIGUSR2 restarts the shards one after another."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2) as signals:
        async with anyio.create_task_group() as tasks:
            async for number in signals:
                if number in (signal.SIGHUP, signal.SIGUSR2):
                    tasks.start_soon(
                        _while_reloading, supervisor.reload if number == signal.SIGHUP else supervisor.recycle
                    )
                elif supervisor.stop_asked.is_set():
                    supervisor.kill()
                    sys.stdout.flush()
                    os._exit(130)
                else:
                    supervisor.stop_asked.set()


async def _while_reloading(work: Callable[[], Awaitable[object]]) -> None:
    """Run `work` between the notifications to systemd that a reload has begun and has ended."""
    from onelane.supervisor.guard import guarded
    from onelane.supervisor.restarts import NotRestarted
    from onelane.supervisor.systemd import notify, notify_reloading

    async def quietly() -> None:
        # The supervisor has logged it.
        with suppress(NotRestarted):
            await work()

    notify_reloading()
    await guarded(quietly)
    notify("READY=1")
