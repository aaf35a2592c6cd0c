"""The command line. Exit codes: 0 success, 1 failure, 2 wrong usage, 3 bad configuration, 4 a port is taken."""

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import click

from onelane import config
from onelane.cli import cluster, new, placement, plan, protos, remote, standard_streams, state, turns
from onelane.cli.admin_client import printable
from onelane.cli.arguments import (
    ACCEPT_MISSING_STATE,
    ADDRESS,
    ADMIN,
    APP_DIR,
    FILE_ARGUMENT,
    INLINE,
    JSON,
    RELOAD,
    RELOAD_DIRS,
    TARGET,
    address_of,
    reporting_errors,
)
from onelane.cli.run_apps import RunOptions, run
from onelane.cli.standard_streams import console
from onelane.errors import BadConfig, Transient

EXIT_CODES = (
    "Exit codes: 0 success; 1 failure, such as a service that cannot be made or no supervisor at the address; 2 wrong "
    "usage; 3 the file has faults; 4 a port is taken; 130 a second signal has ended it at once; 64 + n the "
    "status n of `onelane call`."
)


@click.group(epilog=EXIT_CODES)
@click.version_option(package_name="onelane")
def main() -> None:
    """gRPC services on one single-threaded lane per core."""
    standard_streams.open_closed_ones()


for command in (new.new, protos.proto, remote.ls, remote.describe, remote.call):
    main.add_command(command)
for command in (placement.scale, placement.pin, placement.unpin, plan.plan, state.state, turns.turns, cluster.cluster):
    main.add_command(command)


@main.command()
@FILE_ARGUMENT
@APP_DIR
@ADMIN
@INLINE
@RELOAD
@RELOAD_DIRS
@ACCEPT_MISSING_STATE
@JSON
@reporting_errors
def up(
    file: Path,
    app_dir: Path | None,
    admin: str | None,
    inline: bool,
    reloads: bool,
    reload_dirs: tuple[Path, ...],
    accept_missing_state: bool,
    as_json: bool,
) -> None:
    """Run every app of FILE. With --json each event is one line: ready, stopping, stopped; with --reload also
    not started, reloading, reloaded, not reloaded, generated, settings changed, needs restart."""

    def read(environment: Mapping[str, str]) -> config.Config:
        return _with_admin(config.load(file, environment), admin)

    if reloads or reload_dirs:
        from onelane.cli.reloading import check_possible

        check_possible(inline=inline)
    folder = app_dir or file.parent
    watched = (folder, *reload_dirs) if reloads or reload_dirs else ()
    options = RunOptions(file, inline=inline, watched=watched, accepts_missing_state=accept_missing_state)
    run(read, folder, options, as_json=as_json)


@main.command()
@FILE_ARGUMENT
@click.option("--app", required=True, help="The app of FILE to run.")
@APP_DIR
@ADMIN
@INLINE
@ACCEPT_MISSING_STATE
@JSON
@reporting_errors
def serve(
    file: Path,
    app: str,
    app_dir: Path | None,
    admin: str | None,
    inline: bool,
    accept_missing_state: bool,
    as_json: bool,
) -> None:
    """Run one app of FILE."""

    def read(environment: Mapping[str, str]) -> config.Config:
        return _with_admin(config.load(file, environment).only(app), admin)

    options = RunOptions(file, inline=inline, accepts_missing_state=accept_missing_state)
    run(read, app_dir or file.parent, options, as_json=as_json)


@main.command()
@FILE_ARGUMENT
@click.option("--app", help="Check it as `serve` would run it: this app alone.")
@APP_DIR
@ADMIN
@click.option("--no-import", is_flag=True, help="Check the file alone: run no code of the services.")
@JSON
@reporting_errors
def check(file: Path, app: str | None, app_dir: Path | None, admin: str | None, no_import: bool, as_json: bool) -> None:
    """Check whether FILE can start, and print the apps that it would run.

    In a process for each app its services are imported and made, as a shard does it. Nothing listens, and no resource
    of a worker thread is opened.
    """
    from onelane.cli import check as checks

    def read(environment: Mapping[str, str]) -> config.Config:
        configuration = config.load(file, environment)
        return _with_admin(configuration.only(app) if app else configuration, admin)

    folder = str((app_dir or file.parent).resolve())
    report = checks.check(file, read, app_dir=folder, imports=not no_import)
    for warning in report.warnings:
        click.echo(f"onelane: warning: {printable(warning)}", err=True)
    if as_json:
        click.echo(json.dumps(asdict(report), indent=2))
        sys.exit(3 if report.faults else 0)
    if report.faults:
        raise BadConfig(str(file), report.faults)
    for line in report.apps:
        click.echo(f"{line.name}: {line.shards} shards on {line.listen}, {', '.join(line.services)}")
    click.echo(
        f"with {report.build}; starts within {report.starts_within_s:g} s, stops within {report.stops_within_s:g} s"
    )


@main.command()
@TARGET
@ADDRESS
@JSON
@reporting_errors
def status(target: str | None, address: str | None, as_json: bool) -> None:
    """Show the state of every shard. The address may also be the gRPC address of a shard."""
    from onelane.cli import status as status_client

    state = status_client.fetch(address_of(target, address))
    if as_json:
        click.echo(json.dumps(status_client.documented(state), indent=2))
    else:
        status_client.show(state, console())


@main.command()
@TARGET
@ADDRESS
@JSON
@reporting_errors
def reload(target: str | None, address: str | None, as_json: bool) -> None:
    """Apply the settings of the file to its running services."""
    from onelane.cli import admin_client

    outcome = admin_client.command(address_of(target, address), "/reload")
    if as_json:
        click.echo(json.dumps(outcome, indent=2))
        sys.exit(3 if outcome["faults"] else 0)
    for fault in outcome["faults"]:
        click.echo(f"onelane: nothing was changed: {fault}", err=True)
    for change in outcome["changed"]:
        click.echo(f"changed {change}")
    _show_needs_restart(outcome["needs_restart"])
    if not any(outcome.values()):
        click.echo("nothing has changed")
    sys.exit(3 if outcome["faults"] else 0)


@main.command()
@click.argument("app", required=False)
@ADDRESS
@JSON
@reporting_errors
def restart(app: str | None, address: str | None, as_json: bool) -> None:
    """Restart the shards of APP, or of all apps, one after another; keys keep their state.

    The next process of a shard is started first and takes its keys over; then the one before finishes its calls and
    ends. With the listener grpcio, or a static membership, it ends first, and its state in memory is lost.
    They run with the settings that `up` has read; where the file differs from those by now, it is said how.
    """
    from urllib.parse import quote

    from onelane.cli import progress

    path = "/restart" + (f"?app={quote(app)}" if app else "")
    outcome = progress.follow(address_of(address), path, quiet=as_json, what="restart")
    if as_json:
        click.echo(json.dumps(outcome, indent=2))
        return
    click.echo(f"restarted {outcome['restarted']}")
    for change in outcome["needs_reload"]:
        click.echo(f"the file differs from what runs: {change} (`onelane reload` applies it)")
    _show_needs_restart(outcome["needs_restart"])
    for fault in outcome["faults"]:
        click.echo(f"onelane: the file of `onelane up` would not start again: {fault}", err=True)


@main.command()
@TARGET
@ADDRESS
@click.option(
    "--within", type=click.FloatRange(min=1), default=30.0, show_default=True, help="Seconds that it may take."
)
@JSON
@reporting_errors
def leave(target: str | None, address: str | None, within: float, as_json: bool) -> None:
    """Take a machine out of use before it is stopped: /readyz says so, and its keys move to the other machines.

    It returns once the machine owns no key, and the machine serves on until it is stopped. Where the time is up first
    the exit code is 1, and the keys go on to move. A machine keeps its keys where there is no other one.
    """
    from onelane.cli import admin_client

    asked = address_of(target, address)
    try:
        outcome = admin_client.command(asked, "/leave", within)
    except admin_client.NoAnswer as error:
        raise Transient(f"{asked} may own keys still after {within:g} s; it goes on to move them") from error
    if as_json:
        click.echo(json.dumps(outcome, indent=2))
    elif outcome["moved"]:
        click.echo("the machine owns no keys any more")
    else:
        click.echo("no other machine has taken the keys: they stay with this one")


@main.command()
@TARGET
@ADDRESS
@click.option("--once", is_flag=True, help="Print once and exit; always so where the output is no terminal.")
@JSON
@reporting_errors
def top(target: str | None, address: str | None, once: bool, as_json: bool) -> None:
    """Watch shards, methods, hot keys and helper threads, until q. ↑ ↓ PgUp PgDn scroll."""
    from onelane.cli import admin_client
    from onelane.cli import top as terminal

    asked = address_of(target, address)
    if as_json:
        click.echo(json.dumps(admin_client.fetch(asked, "/snapshot"), indent=2))
        return
    with suppress(KeyboardInterrupt):
        terminal.top(asked, console(), once=once)


@main.command()
@click.argument("trace_id", required=False)
@ADDRESS
@JSON
@reporting_errors
def trace(trace_id: str | None, address: str | None, as_json: bool) -> None:
    """List the last traces, or print the one whose id begins with TRACE_ID as a tree."""
    from onelane.cli import admin_client
    from onelane.cli import top as terminal

    asked = address_of(address)
    rows = admin_client.fetch(asked, "/traces")["traces"] if trace_id is None else terminal.spans_of(asked, trace_id)
    if as_json:
        click.echo(json.dumps({"traces" if trace_id is None else "spans": rows}, indent=2))
    elif trace_id is None:
        terminal.traces(rows, console())
    else:
        terminal.trace(trace_id, rows, console())


def _show_needs_restart(changes: list[str]) -> None:
    for change in changes:
        click.echo(f"the file differs from what runs: {change} (needs a restart of `onelane up`)")


def _with_admin(configuration: config.Config, admin: str | None) -> config.Config:
    if admin is None:
        return configuration
    return config.parse(vars(configuration) | {"admin": admin}, name="--admin")
