"""The command line. Exit codes: 0 well, 1 failed, 2 wrong usage, 3 bad configuration, 4 a port is taken."""

import logging
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
from onelane.errors import BadConfig, OnelaneError, PortTaken, first_of
from onelane.launcher import Launcher, ProcessLauncher

if TYPE_CHECKING:
    from onelane.sinks import Sink
    from onelane.supervisor import Supervisor

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

    from onelane import status as asking

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
    from onelane import status as asking

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

    from onelane import status as asking

    found = asking.command(target or _default_target(), "/restart" + (f"?app={quote(app)}" if app else ""))
    click.echo(f"restarted {found['restarted']}")


@main.command()
@click.argument("sources", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--root", type=click.Path(path_type=Path, exists=True), default=Path("proto"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path(), help="Where modules go; default here.")
@_telling
def proto(sources: tuple[Path, ...], root: Path, out: Path) -> None:
    """Generate Python from .proto files (default: all below --root)."""
    from onelane.proto import generate

    for made in generate(sources or (root,), root=root, out=out):
        click.echo(f"generated {made}")


def _with_admin(read: config.Config, admin: str | None) -> config.Config:
    if admin is None:
        return read
    return config.Config.model_validate(read.model_dump() | {"admin": admin})


def _default_target() -> str:
    here = Path("onelane.toml")
    return config.load(here).admin if here.exists() else config.DEFAULT_ADMIN


def _run(read: Callable[[], config.Config], app_dir: Path, *, inline: bool) -> None:
    """read: reads the file, now and at each reload."""
    first = read()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    folder = str(app_dir.resolve())
    launcher: Launcher = ProcessLauncher()
    if inline:
        # Read by OpenTelemetry's API when it is first imported; in shards of their own, process.py says so.
        os.environ.setdefault("OTEL_PYTHON_CONTEXT", "onelane")
        from onelane.inline import InlineLauncher

        launcher = InlineLauncher()
    anyio.run(_serve, first, read, folder, launcher, backend_options={"use_uvloop": True})


async def _serve(first: config.Config, read: Callable[[], config.Config], app_dir: str, launcher: Launcher) -> None:
    from onelane import admin
    from onelane.supervisor import Supervisor
    from onelane.systemd import notify

    sinks, tracing = _sinks(first, dict(os.environ))
    supervisor = Supervisor(first, launcher, app_dir=app_dir, sinks=sinks, tracing=tracing, read=read)
    async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        tasks.start_soon(_obey_signals, supervisor)
        address = await stack.enter_async_context(admin.serving(supervisor))

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
    from onelane.systemd import notify, notify_reloading

    notify_reloading()
    await work()
    notify("READY=1")


def _sinks(read: config.Config, environment: dict[str, str]) -> "tuple[list[Sink], bool]":
    """The sinks that the file names, OTLP where the `OTEL_*` variables ask for it, and whether they ask for traces.

    Raises:
        BadConfig: they ask for a protocol that is not offered here.
        BadService: a sink is not installed.
    """
    from onelane.plugs import plug

    names = list(read.sinks)
    exports = any(environment.get(f"OTEL_EXPORTER_OTLP_{part}ENDPOINT") for part in ("", "TRACES_", "METRICS_"))
    tracing = False
    if exports:
        # Loaded only where it is used: the SDK costs a tenth of a second.
        from onelane.sinks.otlp import wants

        names.append("otlp")
        tracing = wants(environment, "TRACES")
    return [plug("onelane.sinks", name)(environment) for name in names], tracing
