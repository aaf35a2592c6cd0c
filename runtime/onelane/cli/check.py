"""`onelane check`: all that would keep `onelane up` from starting, without starting anything.

A *fault* ends `up` with the same text. A *warning* does not: `up` logs it and runs.
"""

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import anyio

from onelane import secret_files
from onelane.cli import exports
from onelane.config import App, Config
from onelane.core import addresses
from onelane.errors import BadConfig, OnelaneError
from onelane.secret_files import kept_from_children
from onelane.server import tls
from onelane.supervisor import durations, trial
from onelane.supervisor.admin.listening import admin_context
from onelane.supervisor.shared_resources import TelemetryOptions
from onelane.telemetry import logs, sampling
from onelane.wire.build import Build, running_build


@dataclass(frozen=True, slots=True)
class AppLine:
    """One app that the file would run."""

    name: str
    listen: str
    shards: int
    services: tuple[str, ...]


@dataclass(slots=True)
class CheckReport:
    """The outcome of a check, as `--json` prints it."""

    file: str
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    apps: list[AppLine] = field(default_factory=list)
    build: Build = field(default_factory=running_build)
    """What of onelane would run."""
    starts_within_s: float = 0.0
    """What a startup probe, and the like, has to grant; 0 where the file has faults."""
    stops_within_s: float = 0.0
    """From SIGTERM: what a grace period has to grant."""


def check(file: object, read: Callable[[Mapping[str, str]], Config], *, app_dir: str, imports: bool) -> CheckReport:
    """Check a file. read: reads it; raises BadConfig. imports: whether to run code of the services."""
    report = CheckReport(str(file))
    with kept_from_children() as environment, _noting(report.faults):
        configuration = read(environment)
        report.apps += [AppLine(n, a.listen, a.shard_count, a.services) for n, a in configuration.apps.items()]
        _check(configuration, environment, report, app_dir=app_dir, imports=imports)
        if not report.faults:
            report.starts_within_s = durations.longest_start_s(configuration)
            report.stops_within_s = durations.longest_stop_s(
                configuration,
                len(exports.sink_types(configuration, environment)),
                in_cluster=configuration.cluster is not None,
            )
    return report


def _check(
    configuration: Config, environment: Mapping[str, str], report: CheckReport, *, app_dir: str, imports: bool
) -> None:
    telemetry = TelemetryOptions()
    with _noting(report.faults):
        configuration.check_addresses()
    with _noting(report.faults):
        check_cluster(configuration)
    with _noting(report.faults):
        logs.format_of(environment)
    with _noting(report.faults):
        exports.sink_types(configuration, environment)
    with _noting(report.faults):
        telemetry = exports.telemetry_options(environment)
    with _noting(report.faults):
        if configuration.admin_tls is not None:
            admin_context(configuration.admin_tls)
    if imports:
        report.faults += anyio.run(_trial, configuration, app_dir, telemetry)
    else:
        for name, app in configuration.apps.items():
            with _noting(report.faults):
                _check_tls(name, app)
    report.warnings += warnings_of(configuration, environment)
    report.warnings += _unknown_hosts(configuration)


async def _trial(configuration: Config, app_dir: str, telemetry: TelemetryOptions) -> list[str]:
    reasons = await trial.faults_at_start(configuration, app_dir=app_dir, telemetry=telemetry)
    return [fault for reason in reasons for fault in _faults_in(reason)]


def _faults_in(reason: str) -> list[str]:
    """The faults of one app; the traceback of what a service has raised stays with the last of them."""
    faults: list[str] = []
    for line in reason.split("\n"):
        if line.startswith("apps.") or not faults:
            faults.append(line)
        else:
            faults[-1] += f"\n{line}"
    return faults


def check_cluster(configuration: Config) -> None:
    """Look at what `[cluster]` names; etcd is not asked.

    Raises:
        BadConfig: a file of it cannot be used, an app cannot be a part of a cluster, or this machine of this one.
    """
    settings = configuration.cluster
    if settings is None:
        return
    # Only with a cluster.
    from onelane.cluster.coordination.address import etcd_address
    from onelane.server.machine_link_tls import MachineLinkTls
    from onelane.supervisor.cluster_member import links_of
    from onelane.supervisor.machine_record import record_of

    # By their place: the file of the authority is looked at twice.
    faults: dict[str, str] = {}
    for look in (
        lambda: etcd_address(settings),
        lambda: record_of(settings, configuration.apps),
        lambda: MachineLinkTls(links_of(settings)),
    ):
        try:
            look()
        except BadConfig as error:
            for fault in error.faults:
                faults.setdefault(fault.partition(":")[0], f"{error.source}.{fault}")
    if faults:
        raise BadConfig("cluster", [*faults.values()])


def _check_tls(name: str, app: App) -> None:
    if app.tls is not None:
        try:
            tls.server_context(app.tls)
        except BadConfig as error:
            raise BadConfig(f"apps.{name}.{error.source}", error.faults) from error


@contextmanager
def _noting(faults: list[str]) -> Iterator[None]:
    """Add the faults that are raised to the list, and go on."""
    try:
        yield
    except BadConfig as error:
        faults += [f"{error.source}: {fault}" if "apps." in error.source else fault for fault in error.faults]
    except OnelaneError as error:
        faults.append(str(error))


def warnings_of(configuration: Config, environment: Mapping[str, str]) -> list[str]:
    """What lets an app start and will surprise: an expired certificate, an unknown sampler, a secret for everybody."""
    cluster = configuration.cluster
    files = {
        "admin_token_file": configuration.admin_token_file,
        "cluster.etcd_password_file": None if cluster is None else cluster.etcd_password_file,
    }
    named = {name: file for name, file in files.items() if file}
    warnings = secret_files.warnings_of(secret_files.header_files(environment) | named)
    for name, app in configuration.apps.items():
        try:
            fault = tls.validity_fault(app.tls) if app.tls is not None else ""
        except (OSError, ValueError):
            fault = ""  # The shard says why it cannot use the files.
        warnings += [f"apps.{name}.tls.{fault}"] if fault else []
    sampler = sampling.fault_of(environment)
    return warnings + ([sampler] if sampler else [])


def _unknown_hosts(configuration: Config) -> list[str]:
    """Peers and members of etcd whose host no name server knows now. Not asked by `up`: it may be known later."""
    warnings = []
    for place, host, port in _hosts(configuration):
        try:
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            warnings.append(f"{place}: the host {host!r} cannot be resolved here: {error.strerror}")
    return warnings


def _hosts(configuration: Config) -> Iterator[tuple[str, str, int]]:
    """The setting, the host and the port of whatever is called elsewhere."""
    for name, target in configuration.peers.items():
        plain = addresses.parse_target(target)
        host, _, port = plain.rpartition(":")
        if not plain.startswith("unix:"):
            yield f"peers.{name}", host.strip("[]"), int(port)
    for url in () if configuration.cluster is None else configuration.cluster.etcd:
        address = urlsplit(url)
        yield "cluster.etcd", address.hostname or "", address.port or 0
