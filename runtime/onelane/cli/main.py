"""The command line. Exit codes: 0 success, 1 failure, 2 wrong usage, 3 bad configuration, 4 a port is taken."""

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import click

from onelane import config
from onelane.cli import standard_streams
from onelane.cli.standard_streams import announce
from onelane.core import addresses
from onelane.errors import BadConfig, OnelaneError, PortTaken, first_of
from onelane.supervisor import descriptors
from onelane.supervisor.launcher import Launcher, ProcessLauncher
from onelane.telemetry import logs

if TYPE_CHECKING:
    from rich.console import Console

    from onelane.supervisor.app import TelemetryOptions
    from onelane.supervisor.supervisor import Supervisor
    from onelane.telemetry.sinks import Sink

FILE = click.argument("file", type=click.Path(path_type=Path), default=Path("onelane.toml"))
APP_DIR = click.option(
    "--app-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder that services are imported from, by default that of FILE; then the current one.",
)
ADMIN = click.option("--admin", help="ip:port of the admin server (page, /metrics, /status), instead of the file's.")
INLINE = click.option("--inline", is_flag=True, help="Run all shards in this one process, for debuggers.")


def _reporting_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose `OnelaneError` becomes a message and an exit code; any other error keeps its traceback."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (OnelaneError, BaseExceptionGroup) as raised:
            error = first_of(raised) if isinstance(raised, BaseExceptionGroup) else raised
            if not isinstance(error, OnelaneError):
                raise
            click.echo(f"onelane: {error}", err=True)
            sys.exit(3 if isinstance(error, BadConfig) else 4 if isinstance(error, PortTaken) else 1)

    return run


@click.group()
@click.version_option(package_name="onelane")
def main() -> None:
    """gRPC services on one single-threaded lane per core."""
    standard_streams.open_closed_ones()


@main.command()
@FILE
@APP_DIR
@ADMIN
@INLINE
@_reporting_errors
def up(file: Path, app_dir: Path | None, admin: str | None, inline: bool) -> None:
    """Run every app of FILE."""
    _run(lambda: _with_admin(config.load(file), admin), app_dir or file.parent, inline=inline)


@main.command()
@FILE
@click.option("--app", required=True, help="The app of FILE to run.")
@APP_DIR
@ADMIN
@INLINE
@_reporting_errors
def serve(file: Path, app: str, app_dir: Path | None, admin: str | None, inline: bool) -> None:
    """Run one app of FILE."""
    _run(lambda: _with_admin(config.load(file).only(app), admin), app_dir or file.parent, inline=inline)


@main.command()
@FILE
@_reporting_errors
def check(file: Path) -> None:
    """Check FILE and print the apps that it would run; starts nothing."""
    for name, app in config.load(file).apps.items():
        click.echo(f"{name}: {app.shard_count} shards on {app.listen}, {', '.join(app.services)}")


@main.command()
@click.argument("target", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with the documented fields.")
@_reporting_errors
def status(target: str | None, as_json: bool) -> None:
    """Show the state of every shard. TARGET: an admin or gRPC address (default: admin of ./onelane.toml)."""
    import json

    from rich.console import Console

    from onelane.cli import status as status_client

    state = status_client.fetch(target or _default_target())
    if as_json:
        click.echo(json.dumps(status_client.documented(state), indent=2))
    else:
        status_client.show(state, Console())


@main.command()
@click.argument("target", required=False)
@_reporting_errors
def reload(target: str | None) -> None:
    """Apply the settings of the file to its running services. TARGET: an admin address (default: of ./onelane.toml)."""
    from onelane.cli import status as status_client

    outcome = status_client.command(target or _default_target(), "/reload")
    for fault in outcome["faults"]:
        click.echo(f"onelane: nothing was changed: {fault}", err=True)
    for change in outcome["changed"]:
        click.echo(f"changed {change}")
    for change in outcome["needs_restart"]:
        click.echo(f"needs a restart: {change}")
    if not any(outcome.values()):
        click.echo("nothing has changed")
    sys.exit(3 if outcome["faults"] else 0)


@main.command()
@click.argument("app", required=False)
@click.option("--admin", "target", help="The admin address (default: of ./onelane.toml).")
@_reporting_errors
def restart(app: str | None, target: str | None) -> None:
    """Restart the shards of APP, or of all apps, one after another, each after its calls have finished."""
    from urllib.parse import quote

    from onelane.cli import status as status_client

    outcome = status_client.command(target or _default_target(), "/restart" + (f"?app={quote(app)}" if app else ""))
    click.echo(f"restarted {outcome['restarted']}")


@main.command()
@click.argument("target", required=False)
@click.option("--once", is_flag=True, help="Print once and exit; always so where the output is no terminal.")
@_reporting_errors
def top(target: str | None, once: bool) -> None:
    """Watch shards, methods, hot keys and helper threads. TARGET: an admin address (default: of ./onelane.toml)."""
    from contextlib import suppress

    from onelane.cli import top as terminal

    with suppress(KeyboardInterrupt):
        terminal.top(target or _default_target(), console(), once=once)


@main.command()
@click.argument("trace_id", required=False)
@click.option("--admin", "target", help="The admin address (default: of ./onelane.toml).")
@_reporting_errors
def trace(trace_id: str | None, target: str | None) -> None:
    """List the last traces, or print the one whose id begins with TRACE_ID as a tree."""
    from onelane.cli import top as terminal

    if trace_id is None:
        terminal.traces(target or _default_target(), console())
    else:
        terminal.trace(target or _default_target(), trace_id, console())


@main.command()
@click.argument("sources", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--root", type=click.Path(path_type=Path, exists=True), default=Path("proto"), show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path(),
    help="The folder that modules are written below (default: this one).",
)
@_reporting_errors
def proto(sources: tuple[Path, ...], root: Path, out: Path) -> None:
    """Generate Python from .proto files (default: all below --root)."""
    from onelane.cli.protoc import generate

    for proto_file in generate(sources or (root,), root=root, out=out):
        click.echo(f"generated {proto_file}")


def _with_admin(configuration: config.Config, admin: str | None) -> config.Config:
    if admin is None:
        return configuration
    return config.Config.model_validate(configuration.model_dump() | {"admin": admin})


def console() -> "Console":
    """A console that prints text as it is, without markup; where it is no terminal, wide enough to cut nothing off."""
    from rich.console import Console

    verbatim: Any = {"markup": False, "emoji": False, "highlight": False}
    console = Console(**verbatim)
    return console if console.is_terminal else Console(width=200, **verbatim)


def _default_target() -> str:
    """The admin address of the file in this folder, if there is one; its token goes into this process's environment."""
    file = Path("onelane.toml")
    if not file.exists():
        return config.DEFAULT_ADMIN
    configuration = config.load(file)
    if configuration.admin_token is not None:
        os.environ.setdefault(config.ADMIN_TOKEN, configuration.admin_token)
    return addresses.reachable(configuration.admin)


def _run(read: Callable[[], config.Config], app_dir: Path, *, inline: bool) -> None:
    """read: reads the file, now and at each reload."""
    first = read()
    logs.install(os.environ)
    folder = str(app_dir.resolve())
    descriptors.raise_limit()
    launcher: Launcher = ProcessLauncher()
    if inline:
        # As `python -m` does for a shard in a process of its own.
        sys.path.append(os.getcwd())
        # OpenTelemetry's API reads this when it is first imported. For shards in processes, shard/process.py sets it.
        os.environ.setdefault("OTEL_PYTHON_CONTEXT", "onelane")
        from onelane.supervisor.inline import InlineLauncher

        launcher = InlineLauncher()
    anyio.run(_serve, first, read, folder, launcher, backend_options={"use_uvloop": True})


async def _serve(first: config.Config, read: Callable[[], config.Config], app_dir: str, launcher: Launcher) -> None:
    from onelane.supervisor.admin import server
    from onelane.supervisor.supervisor import Supervisor
    from onelane.supervisor.systemd import notify

    environment = dict(os.environ)
    supervisor = Supervisor(
        first,
        launcher,
        app_dir=app_dir,
        sinks=_sinks(first, environment),
        telemetry=_telemetry_options(environment),
        read=read,
    )
    async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        tasks.start_soon(_handle_signals, supervisor)
        address = await stack.enter_async_context(server.serving(supervisor))

        def announce_ready() -> None:
            for app in supervisor.apps:
                announce(f"onelane: {app.name} ready on {app.settings.listen} ({len(app.shards)} shards)")
            announce(f"onelane: ready, admin on http://{address}")
            notify("READY=1")

        await supervisor.run(on_ready=announce_ready)
        notify("STOPPING=1")
        tasks.cancel_scope.cancel()


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
    from onelane.supervisor.systemd import notify, notify_reloading

    notify_reloading()
    await work()
    notify("READY=1")


def _sinks(configuration: config.Config, environment: dict[str, str]) -> "list[Sink]":
    """The sinks that the file names, and OTLP where the `OTEL_*` variables ask for it.

    Raises:
        BadConfig: a variable has an invalid value.
        BadService: a sink is not installed.
    """
    from onelane.plugins import load_plugin
    from onelane.telemetry.sinks.otlp.target import SIGNALS, target_of

    exports = any(target_of(environment, signal) for signal in SIGNALS)
    names = [*configuration.sinks, *(["otlp"] if exports else [])]
    return [load_plugin("onelane.sinks", name)(environment) for name in names]


def _telemetry_options(environment: dict[str, str]) -> "TelemetryOptions":
    """The signals that shards record. Without an exporter of traces, a few are recorded for the admin page."""
    from onelane.supervisor.app import TelemetryOptions
    from onelane.telemetry.sampling import RATE_LIMITED
    from onelane.telemetry.sinks.otlp.pipe import LOGS, TRACES
    from onelane.telemetry.sinks.otlp.target import target_of

    disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    default_sampler = "" if target_of(environment, TRACES) is not None else RATE_LIMITED
    return TelemetryOptions(
        traces=not disabled,
        sampler=environment.get("OTEL_TRACES_SAMPLER", default_sampler),
        sampler_arg=environment.get("OTEL_TRACES_SAMPLER_ARG", ""),
        logs=target_of(environment, LOGS) is not None,
    )
