"""Machines of one cluster, each a host with its own `onelane up`, beside hosts with a real etcd and PostgreSQL."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import trustme
from onelane.cli.cluster_files import make_files
from onelane.core.cluster_settings import ClusterSettings, ClusterTls, EtcdTls

from tests import etcd, postgres
from tests.etcd import EtcdServer
from tests.namespaces.network import Host, Network, new_network
from tests.postgres import PostgresServer
from tests.running_app import RunningApp, running
from tests.supervisor.cluster_variables import environment_of

CLUSTER = "arena"
PORT = 50051
"""Of the first app of a machine; the next has the next one."""


@dataclass(frozen=True)
class Machine:
    """A host, and what runs there."""

    host: Host
    app: RunningApp

    @property
    def name(self) -> str:
        return self.host.name

    def address(self, number: int = 0) -> str:
        """Of an app, by its number in the file."""
        return f"{self.host.address}:{PORT + number}"


class Cluster:
    """See the module. By `new_cluster()`."""

    def __init__(self, network: Network, folder: Path, members: Sequence[EtcdServer], *, lease_s: int) -> None:
        self.network = network
        self.members = members
        """Of etcd."""
        self.lease_s = lease_s
        self.postgres: PostgresServer | None = None
        self.folder = folder
        self.etcd_authority: Path | None = None
        """That has signed etcd's certificates: links between machines are mutual TLS then. None: nothing is."""
        self._hosts: dict[str, Host] = {}

    def host(self, name: str) -> Host:
        """Of a machine, whether it runs or not."""
        if name not in self._hosts:
            self._hosts[name] = self.network.host(name)
        return self._hosts[name]

    def settings_of(self, name: str) -> ClusterSettings:
        settings = ClusterSettings(
            name=CLUSTER,
            etcd=tuple(member.url for member in self.members),
            machine=name,
            advertise=self.host(name).address,
            lease_s=self.lease_s,
            insecure=True,
        )
        if self.etcd_authority is None:
            return settings
        ca, cert, key = (str(self.folder / file) for file in ("ca.pem", f"{name}.pem", f"{name}.key"))
        return replace(
            settings,
            insecure=False,
            tls=ClusterTls(ca=ca, cert=cert, key=key),
            etcd_tls=EtcdTls(ca=str(self.etcd_authority)),
        )

    @contextmanager
    def up(self, name: str, toml: str, *, module: str = "onelane", **environment: str) -> Iterator[Machine]:
        """A machine, once it is ready; it leaves at the end, where it still runs. toml: its apps listen at
        `{address}:PORT`, where `{address}` is that of the host. Its log is that of its app."""
        host = self.host(name)
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        socket = folder / "admin"
        socket.unlink(missing_ok=True)
        settings = environment_of(self.settings_of(name))
        with running(
            folder,
            toml.replace("{address}", host.address),
            module=module,
            namespace=str(host.file),
            admin=f"unix:{socket}",
            **settings,
            **environment,
        ) as app:
            yield Machine(host, app)


@contextmanager
def new_cluster(
    folder: Path,
    *,
    lease_s: int,
    etcd_members: int = 1,
    with_postgres: bool = False,
    certified: Sequence[str] = (),
) -> Iterator[Cluster]:
    """A cluster without machines. folder: of what they leave behind, such as their logs. etcd_members: one or three.
    certified: the machines that have certificates: links between them are mutual TLS, etcd is reached by https; without
    any, nothing is. Skips where there can be no namespaces, no etcd or no PostgreSQL.
    """
    with ExitStack() as stack:
        network = stack.enter_context(new_network())
        names = ["etcd"] if etcd_members == 1 else [f"etcd{number}" for number in range(etcd_members)]
        hosts = [network.host(name) for name in names]
        authority = _certify(hosts, folder) if certified else None
        options: dict[str, Any] = {"scheme": "https", "authority": authority} if certified else {}
        files = [f"--cert-file={folder / 'etcd.pem'}", f"--key-file={folder / 'etcd.pem'}"] if certified else []
        if certified:
            make_files(folder, CLUSTER, certified)
        members: Sequence[EtcdServer]
        if etcd_members == 1:
            members = [stack.enter_context(etcd.etcd(*files, host=hosts[0], **options))]
        else:
            members = stack.enter_context(etcd.etcd_of_three(*files, hosts=hosts, **options))
        cluster = Cluster(network, folder, members, lease_s=lease_s)
        cluster.etcd_authority = authority
        if with_postgres:
            cluster.postgres = stack.enter_context(postgres.server(network.host("postgres")))
        yield cluster


def _certify(hosts: Sequence[Host], folder: Path) -> Path:
    """A certificate for all members of etcd, `etcd.pem`, and the file of its authority."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "etcd-ca.pem"))
    certificate = authority.issue_cert(*(host.address for host in hosts))
    certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "etcd.pem"))
    return folder / "etcd-ca.pem"
