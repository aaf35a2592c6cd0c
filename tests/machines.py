"""Machines of a cluster for tests: their certificates, and shards that each stand on a machine of their own."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from onelane.cluster.control import links_to_proto
from onelane.core.machine_links import LinkAddress, LinkFiles, MachineLinks, certificate_name
from onelane.testing.cluster_app import ClusterApp, ClusterShard

CLUSTER = "arena"


class Certificates:
    """An authority, and the certificates of machines, on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.ca = trustme.CA()
        self.ca.cert_pem.write_to_path(str(folder / "ca.pem"))

    def issue(self, machine: str, *names: str, not_after: datetime | None = None, by: trustme.CA | None = None) -> None:
        """names: in the certificate; by default that of the machine. by: another authority."""
        cert = (by or self.ca).issue_cert(*(names or (certificate_name(machine, CLUSTER),)), not_after=not_after)
        cert.private_key_pem.write_to_path(str(self.folder / f"{machine}.key"))
        cert.cert_chain_pems[0].write_to_path(str(self.folder / f"{machine}.pem"))

    def files(self, machine: str) -> LinkFiles:
        folder = self.folder
        return LinkFiles(f"{folder}/ca.pem", f"{folder}/{machine}.pem", f"{folder}/{machine}.key")

    def links(self, machine: str) -> MachineLinks:
        """Of a machine; its certificate is issued where it has none."""
        if not (self.folder / f"{machine}.pem").exists():
            self.issue(machine)
        return MachineLinks(CLUSTER, machine, self.files(machine))


@contextmanager
def apart(certificates: Certificates | None) -> Iterator[list[str]]:
    """Shards of a `Cluster` that are made within the block stand on machines `m0`, `m1` and so on, by their index: they
    reach each other by links, insecure ones without certificates. Yields the addresses of their lives as they are made.
    """
    link_addresses: list[str] = []
    paths: dict[str, str] = {}
    make_shard, setup_of = ClusterApp._make_shard, ClusterShard._setup

    def make(self: ClusterApp, index: int, beside: ClusterShard | None = None) -> ClusterShard:
        shard = make_shard(self, index, beside)
        link = socket.create_server(("127.0.0.1", 0))
        address = str(LinkAddress(f"m{index}", *link.getsockname()[:2]))
        link_addresses.append(address)
        paths[address] = shard.member.socket
        shard.member = replace(shard.member, socket=address)
        shard.sockets = (*shard.sockets, link)
        return shard

    def setup(self: ClusterShard, *arguments: Any) -> Any:
        described = setup_of(self, *arguments)
        described.socket = paths[self.member.socket]
        machine = f"m{self.index}"
        links = MachineLinks(CLUSTER, machine, None) if certificates is None else certificates.links(machine)
        described.links.CopyFrom(links_to_proto(links))
        return described

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClusterApp, "_make_shard", make)
        patch.setattr(ClusterShard, "_setup", setup)
        yield link_addresses
