"""The command line. Exit codes: 0 well, 1 failed, 2 wrong usage, 3 bad configuration, 4 a port is taken."""

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
from onelane.core import addresses
from onelane.errors import BadConfig, OnelaneError, PortTaken, first_of
from onelane.supervisor.launcher import Launcher, ProcessLauncher
from onelane.telemetry import logs

if TYPE_CHECKING:
    from rich.console import Console

    from onelane.supervisor.app import TelemetryOptions
    from onelane.supervisor.supervisor import Supervisor
    from onelane.telemetry.sinks import Sink

FILE = click.argument("file", type=click.Path(path_type=Path), default=Path("onelane.toml"))
APP_DIR = click.option(
    "--app-dir", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="Where services are imported."
)
ADMIN = click.option("--admin", help="ip:port for /metrics and /status instead of the file's.")
INLINE = click.option("--inline", is_flag=True, help="All shards in this one process, for debuggers.")


def _telling(command: Callable[..., Any]) -> Callable[..., Any]:
    """Our errors become one message and an exit code; anything else is a bug and keeps its traceback."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (OnelaneError, BaseExceptionGroup) as caught:
            error = first_of(caught) if isinstance(caught, BaseExceptionGroup) else caught
            if not isinstance(error, OnelaneError):
                raise
            click.echo(f"onelane: {error}", err=True)
            sys.exit(3 if isinstance(error, BadConfig) else 4 if isinstance(error, PortTaken) else 1)

    return run


@click.group()
@click.version_option(package_name="onelane")
def main() -> None:
    """gRPC services on one single-threaded lane per core."""


@main.command()
@FILE
@APP_DIR
@ADMIN
@INLINE
@_telling
def up(file: Path, app_dir: Path, admin: str | None, inline: bool) -> None:
    """Run every app of FILE."""
    _run(lambda: _with_admin(config.load(file), admin), app_dir, inline=inline)


@main.command()
@FILE
@click.option("--app", required=True, help="The app of FILE to run.")
@APP_DIR
@ADMIN
@INLINE
@_telling
def serve(file: Path, app: str, app_dir: Path, admin: str | None, inline: bool) -> None:
    """Run one app of FILE."""
    _run(lambda: _with_admin(config.load(file).only(app), admin), app_dir, inline=inline)


@main.command()
@FILE
@_telling
def check(file: Path) -> None:
    """Check FILE and say what it would run; starts nothing."""
    for name, app in config.load(file).apps.items():
        click.echo(f"{name}: {app.shard_count} shards on {app.listen}, {', '.join(app.services)}")


@main.command()
@click.argument("target", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, of a fixed shape.")
@_telling
def status(target: str | None, as_json: bool) -> None:
    """Show every shard. TARGET: an admin or gRPC address; else that of ./onelane.toml, else the default."""
    import json

    from rich.console import Console

    from onelane.cli import status as asking

    found = asking.fetch(target or _default_target())
    if as_json:
        click.echo(json.dumps(asking.fixed_shape(found), indent=2))
    else:
        asking.show(found, Console())


@main.command()
@click.argument("target", required=False)
@_telling
def reload(target: str | None) -> None:
    """Give running services the settings of their file. TARGET: an admin address; else that of ./onelane.toml."""
    from onelane.cli import status as asking

    found = asking.command(target or _default_target(), "/reload")
    for fault in found["faults"]:
        click.echo(f"onelane: nothing was changed: {fault}", err=True)
    for change in found["changed"]:
        click.echo(f"changed {change}")
    for left in found["needs_restart"]:
        click.echo(f"needs a restart: {left}")
    if not any(found.values()):
        click.echo("nothing has changed")
    sys.exit(3 if found["faults"] else 0)


@main.command()
@click.argument("app", required=False)
@click.option("--admin", "target", help="The admin address; else that of ./onelane.toml.")
@_telling
def restart(app: str | None, target: str | None) -> None:
    """Restart the shards of APP, or of all, one after another, each after its calls have finished."""
    from urllib.parse import quote

    from onelane.cli import status as asking

    found = asking.command(target or _default_target(), "/restart" + (f"?app={quote(app)}" if app else ""))
    click.echo(f"restarted {found['restarted']}")


@main.command()
@click.argument("target", required=False)
@click.option("--once", is_flag=True, help="Print once and end, as where the output is no terminal.")
@_telling
def top(target: str | None, once: bool) -> None:
    """Watch every app: shards, methods, hot keys, helpers. TARGET: an admin address; else that of ./onelane.toml."""
    from contextlib import suppress

    from onelane.cli import top as watching

    with suppress(KeyboardInterrupt):
        watching.top(target or _default_target(), console(), once=once)


@main.command()
@click.argument("trace_id", required=False)
@click.option("--admin", "target", help="The admin address; else that of ./onelane.toml.")
@_telling
def trace(trace_id: str | None, target: str | None) -> None:
    """List the last traces, or print the one whose id begins with TRACE_ID as a tree."""
    from onelane.cli import top as watching

    if trace_id is None:
        watching.traces(target or _default_target(), console())
    else:
        watching.trace(target or _default_target(), trace_id, console())


@main.command()
@click.argument("sources", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--root", type=click.Path(path_type=Path, exists=True), default=Path("proto"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path(), help="Where modules go; default here.")
@_telling
def proto(sources: tuple[Path, ...], root: Path, out: Path) -> None:
    """Generate Python from .proto files (default: all below --root)."""
    from onelane.cli.protoc import generate

    for made in generate(sources or (root,), root=root, out=out):
        click.echo(f"generated {made}")


def _with_admin(read: config.Config, admin: str | None) -> config.Config:
    if admin is None:
        return read
    return config.Config.model_validate(read.model_dump() | {"admin": admin})


def console() -> "Console":
    """A console; where it is no terminal, wide enough that nothing is cut off. What it prints is text and no markup."""
    from rich.console import Console

    plain: Any = {"markup": False, "emoji": False, "highlight": False}
    console = Console(**plain)
    return console if console.is_terminal else Console(width=200, **plain)


def _default_target() -> str:
    here = Path("onelane.toml")
    if not here.exists():
        return config.DEFAULT_ADMIN
    found = config.load(here)
    if found.admin_token is not None:
        os.environ.setdefault(config.ADMIN_TOKEN, found.admin_token)
    return addresses.reachable(found.admin)


def _run(read: Callable[[], config.Config], app_dir: Path, *, inline: bool) -> None:
    """read: reads the file, now and at each reload."""
    first = read()
    logs.install(os.environ)
    folder = str(app_dir.resolve())
    launcher: Launcher = ProcessLauncher()
    if inline:
        # Read by OpenTelemetry's API when it is first imported; in shards of their own, process.py says so.
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
        tasks.start_soon(_obey_signals, supervisor)
        address = await stack.enter_async_context(server.serving(supervisor))

        def tell_ready() -> None:
            for app in supervisor.apps:
                click.echo(f"onelane: {app.name} ready on {app.settings.listen} ({len(app.shards)} shards)")
            click.echo(f"onelane: ready, admin on http://{address}")
            sys.stdout.flush()
            notify("READY=1")

        await supervisor.run(on_ready=tell_ready)
        notify("STOPPING=1")
        tasks.cancel_scope.cancel()


async def _obey_signals(supervisor: "Supervisor") -> None:
    """SIGTERM or SIGINT drains; a second one ends everything at once. SIGHUP reloads the services' settings, SIGUSR2
    restarts the shards one by one."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2) as signals:
        async with anyio.create_task_group() as tasks:
            async for number in signals:
                if number in (signal.SIGHUP, signal.SIGUSR2):
                    tasks.start_soon(_reloading, supervisor.reload if number == signal.SIGHUP else supervisor.recycle)
                elif supervisor.stop_asked.is_set():
                    supervisor.kill()
                    sys.stdout.flush()
                    os._exit(130)
                else:
                    supervisor.stop_asked.set()


async def _reloading(work: Callable[[], Awaitable[object]]) -> None:
    """Do what a signal asks for, and let systemd know."""
    from onelane.supervisor.systemd import notify, notify_reloading

    notify_reloading()
    await work()
    notify("READY=1")


def _sinks(read: config.Config, environment: dict[str, str]) -> "list[Sink]":
    """The sinks that the file names, and OTLP where the `OTEL_*` variables ask for it.

    Raises:
        BadConfig: a variable cannot be meant.
        BadService: a sink is not installed.
    """
    from onelane.plugins import plug
    from onelane.telemetry.sinks.otlp.target import SIGNALS, target_of

    exports = any(target_of(environment, signal) for signal in SIGNALS)
    names = [*read.sinks, *(["otlp"] if exports else [])]
    return [plug("onelane.sinks", name)(environment) for name in names]


def _telemetry_options(environment: dict[str, str]) -> "TelemetryOptions":
    """What shards record. Where nobody asks for traces, some, for the admin page."""
    from onelane.supervisor.app import TelemetryOptions
    from onelane.telemetry.sampling import RATE_LIMITED
    from onelane.telemetry.sinks.otlp.pipe import LOGS, TRACES
    from onelane.telemetry.sinks.otlp.target import target_of

    disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    usual = "" if target_of(environment, TRACES) is not None else RATE_LIMITED
    return TelemetryOptions(
        traces=not disabled,
        sampler=environment.get("OTEL_TRACES_SAMPLER", usual),
        sampler_arg=environment.get("OTEL_TRACES_SAMPLER_ARG", ""),
        logs=target_of(environment, LOGS) is not None,
    )
