"""`onelane cluster`: the machines that run the apps of a file together, by the etcd that its table `[cluster]` names.

They ask etcd and no supervisor, so they work where none runs.
"""

import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onelane import config
from onelane.cli.arguments import JSON, reporting_errors
from onelane.cli.standard_streams import console
from onelane.core.cluster_settings import ClusterSettings, faults_of_names
from onelane.errors import BadConfig

if TYPE_CHECKING:
    from onelane.cluster.coordination import CoordinationStore

_T = TypeVar("_T")
CLUSTER_FILE = click.option(
    "--file",
    type=click.Path(path_type=Path),
    default=Path("onelane.toml"),
    show_default=True,
    help="The file whose table [cluster] names the cluster and its etcd.",
)
ETCD_TIMEOUT_S = 5.0
"""Of one request to etcd: an operator waits longer than a lease may."""


@click.group()
def cluster() -> None:
    """The machines that run the apps of a file together (`[cluster]`)."""


@cluster.command("init")
@click.argument("name")
@click.argument("machines", nargs=-1, required=True, metavar="MACHINE...")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("cluster"),
    show_default=True,
    help="Where the files are written. The authority that is there signs for further machines.",
)
@reporting_errors
def init(name: str, machines: tuple[str, ...], folder: Path) -> None:
    """Make an authority, and a certificate for each MACHINE of the cluster NAME: for trying, valid for a year.

    Links between machines are mutual TLS. Where you have an authority of your own, have it sign a certificate for each
    machine instead, with the DNS name MACHINE.NAME.onelane.internal. It needs the extra onelane[cluster].
    """
    from onelane.cli.cluster_files import AUTHORITY, AUTHORITY_KEY, make_files

    _check_names(name, machines)
    files = make_files(folder, name, machines)
    if files.has_new_authority:
        click.echo(f"made an authority: {folder / AUTHORITY}, with its key, {folder / AUTHORITY_KEY}")
        click.echo(f"keep {folder / AUTHORITY_KEY} here, and nowhere else: who has it can be any machine")
    for machine in machines:
        own = f"{folder / AUTHORITY}, {folder / machine}.pem and {folder / machine}.key"
        click.echo(f"copy {own} to machine {machine}, and say in its onelane.toml:")
        click.echo(_table(name, machine))


def _check_names(name: str, machines: tuple[str, ...]) -> None:
    """Raises BadConfig where `[cluster]` would not have them."""
    faults = faults_of_names(name, machines)
    faults += ["'ca' is the name of the authority's own files: expected another one"] if "ca" in machines else []
    faults += [f"{machine!r} is named twice" for machine in sorted({m for m in machines if machines.count(m) > 1})]
    if faults:
        raise BadConfig("cluster init", faults)


def _table(name: str, machine: str) -> str:
    return "\n".join(
        [
            "",
            "    [cluster]",
            f'    name = "{name}"',
            '    etcd = ["https://ADDRESS:2379"]',
            f'    machine = "{machine}"',
            f'    advertise = "THE ADDRESS OF {machine}"',
            f'    tls = {{ ca = "ca.pem", cert = "{machine}.pem", key = "{machine}.key" }}',
            "",
        ]
    )


@cluster.command("bootstrap")
@CLUSTER_FILE
@click.option(
    "--server",
    "servers",
    multiple=True,
    metavar="HOST:PORT",
    help="The xDS port of a machine, once for each; a client uses the first that answers. By default "
    "this machine's, then those of all others that etcd knows.",
)
@reporting_errors
def bootstrap(file: Path, servers: tuple[str, ...]) -> None:
    """Print the bootstrap file by which stock clients of gRPC follow the placements: grpcio, grpc-go, grpc-java.

    \b
    onelane cluster bootstrap > bootstrap.json
    GRPC_XDS_BOOTSTRAP=bootstrap.json your-client   # which dials xds:///APP

    With more than 8 shards of 512 points a client needs a larger ring: see the page on many machines.
    """
    settings = _settings_of(file)
    click.echo(json.dumps(bootstrap_of(settings, servers or _xds_servers_of(settings, file)), indent=2))


def bootstrap_of(settings: ClusterSettings, servers: tuple[str, ...]) -> dict[str, Any]:
    """What gRPC calls a bootstrap file. servers: in the order in which they are tried."""
    rows = [
        {"server_uri": server, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}
        for server in servers
    ]
    return {"xds_servers": rows, "node": {"id": f"client-of-{settings.name}", "cluster": settings.name}}


def _xds_servers_of(settings: ClusterSettings, file: Path) -> tuple[str, ...]:
    """Where clients reach the xDS servers of all machines that have one: this one's first, then as etcd tells them.

    Raises:
        BadConfig: there is none.
    """
    # Only where etcd is asked.
    from onelane.cluster.coordination import CoordinationRefused, CoordinationUnavailable

    servers = [settings.xds_server] if settings.xds else []
    try:
        servers += _ask(settings, file, lambda store: _xds_servers_in(store, settings.name))
    except (CoordinationUnavailable, CoordinationRefused) as error:
        click.echo(f"onelane: other machines are left out: {error}", err=True)
    if not servers:
        expected = 'expected its address, such as xds = "0.0.0.0:18000" (or --server HOST:PORT of other machines)'
        raise BadConfig(str(file), [f"cluster.xds: is missing, here and on all machines that are known; {expected}"])
    return tuple(dict.fromkeys(servers))


async def _xds_servers_in(store: "CoordinationStore", name: str) -> list[str]:
    from onelane.cluster.machines import ClusterKeys, ClusterView, MachineRecord

    keys = ClusterKeys(name)
    view = ClusterView(keys, await store.read(keys.prefix))
    return [row.xds for row in view.machines() if isinstance(row, MachineRecord) and row.xds]


@cluster.command("status")
@CLUSTER_FILE
@JSON
@reporting_errors
def status(file: Path, as_json: bool) -> None:
    """Show all machines, as etcd tells them: leases, who coordinates, placements and the change under way.

    What only a machine itself knows, such as since when it is cut off, `onelane status` there says.
    """
    settings = _settings_of(file)
    row = _ask(settings, file, lambda store: _status_in(store, settings.name))
    if as_json:
        click.echo(json.dumps(row, indent=2))
        return
    from onelane.cli import cluster_text

    if not row["machines"] and not row["apps"]:
        click.echo(f"etcd has nothing of a cluster {settings.name!r}: no machine of it has joined yet")
        return
    cluster_text.show(row | {"machine": None, "lease": {"fault": ""}}, console())


async def _status_in(store: "CoordinationStore", name: str) -> dict[str, Any]:
    from onelane.cluster.machines import ClusterKeys, ClusterView
    from onelane.cluster.overview import overview_of, overview_row

    keys = ClusterKeys(name)
    view = ClusterView(keys, await store.read(keys.prefix))
    leases = {machine.lease for machine in overview_of(view).machines if machine.lease}
    return overview_row(overview_of(view, {lease: await store.remaining(lease) for lease in sorted(leases)}))


@cluster.command("forget")
@click.argument("machine")
@click.option("--force", "is_forced", is_flag=True, help="Also where the machine renews its lease.")
@CLUSTER_FILE
@JSON
@reporting_errors
def forget(machine: str, is_forced: bool, file: Path, as_json: bool) -> None:
    """Have MACHINE given up: its lease is revoked, and others serve its keys once its lease would have run out.

    What it has in memory is lost; what is durable is served by others. Not needed for a machine that has died: its
    lease ends by itself. A machine that still runs ends its processes as soon as it hears of it, and joins again with
    others: stop `onelane up` there if it is to stay away.
    """
    from onelane.cluster import forgetting
    from onelane.cluster.machines import ClusterKeys

    settings = _settings_of(file)
    keys = ClusterKeys(settings.name)
    forgotten = _ask(settings, file, lambda store: forgetting.forget(store, keys, machine, is_forced=is_forced))
    if as_json:
        row = asdict(forgotten)
        click.echo(json.dumps(row | {"lease_id": f"{forgotten.lease_id:x}"}, indent=2))
        return
    click.echo(
        f"{machine} is forgotten: in {forgotten.waits_s:g} s others serve its keys, without what it had in memory"
    )
    if forgotten.was_alive:
        click.echo(f"where {machine} still runs, it joins again with new processes: stop it there to keep it away")


def _settings_of(file: Path) -> ClusterSettings:
    """Raises BadConfig where the file has faults, or no cluster."""
    settings = config.load(file, os.environ).cluster
    if settings is None:
        raise BadConfig(str(file), ["cluster: is missing; expected the table [cluster] with name, etcd and advertise"])
    return settings


def _ask(settings: ClusterSettings, file: Path, question: "Callable[[CoordinationStore], Awaitable[_T]]") -> _T:
    """The answer to a question to etcd.

    Raises:
        CoordinationUnavailable, CoordinationRefused: with what is to be looked at in the file.
    """
    import anyio

    return anyio.run(_answer, settings, file, question)


async def _answer(
    settings: ClusterSettings, file: Path, question: "Callable[[CoordinationStore], Awaitable[_T]]"
) -> _T:
    from onelane.cluster.coordination import CoordinationRefused, CoordinationUnavailable
    from onelane.cluster.coordination.address import etcd_address
    from onelane.cluster.coordination.etcd import EtcdStore

    store = EtcdStore(replace(etcd_address(settings), timeout_s=ETCD_TIMEOUT_S))
    try:
        return await question(store)
    except CoordinationUnavailable as error:
        raise CoordinationUnavailable(f"{error}; expected an etcd at cluster.etcd of {file}") from error
    except CoordinationRefused as error:
        raise CoordinationRefused(f"{error}; see cluster.etcd_user, etcd_password and etcd_tls of {file}") from error
    finally:
        await store.close()
