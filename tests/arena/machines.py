"""The arena on machines: network namespaces with an `onelane up` of the arena's file in each, an etcd and a PostgreSQL.

What differs from the arena on one machine stands in the environment.
"""

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import AF_INET, IPPROTO_TCP, SOCK_STREAM
from typing import Any

import trustme

from services.arena.admin import Admin
from services.arena.drive import FILE, read_addresses
from tests import etcd, postgres, tools
from tests.namespaces.network import Host, Network, need_root, new_network
from tests.running_app import ROOT

CLUSTER = "arena"
PORTS = {"lobby": 50051, "profile": 50061, "leaderboard": 50071}
"""Of each app, on every machine."""
ADMIN_PORT = 9464
LOG_LINES = 20
"""Of the log of a machine that has ended by itself."""


class MachineFault(Exception):
    """A machine did not do what was asked of it."""


@dataclass(frozen=True)
class Site:
    """What all machines share."""

    network: Network
    folder: Path
    """What they leave behind: a folder for each, and one for the certificates of their links."""
    etcd_url: str
    etcd_ca: Path
    dsn: str
    """Of PostgreSQL."""
    lease_s: int
    shards: int | None
    """Of each app on each machine; None for those of the file."""
    token: str
    """Of the admin addresses."""

    @property
    def links(self) -> Path:
        """The folder of these certificates."""
        return self.folder / "links"

    async def certify(self, *machines: str) -> None:
        """Make the certificates of machines, and before the first an authority, as an operator does.

        Raises:
            MachineFault: it failed.
        """
        arguments = ["cluster", "init", CLUSTER, *machines, "--folder", str(self.links)]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "onelane", *arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        output, _ = await process.communicate()
        if process.returncode:
            raise MachineFault(f"onelane {' '.join(arguments)}: {output.decode()}")

    def environment_of(self, name: str, address: str) -> dict[str, str]:
        """The variables of a machine."""
        cluster = {
            "NAME": CLUSTER,
            "ETCD": self.etcd_url,
            "ETCD_TLS__CA": str(self.etcd_ca),
            "MACHINE": name,
            "ADVERTISE": address,
            "LEASE_S": str(self.lease_s),
            "TLS__CA": str(self.links / "ca.pem"),
            "TLS__CERT": str(self.links / f"{name}.pem"),
            "TLS__KEY": str(self.links / f"{name}.key"),
        }
        apps = {f"{app.upper()}__LISTEN": f"{address}:{port}" for app, port in PORTS.items()}
        if self.shards is not None:
            apps |= {f"{app.upper()}__SHARDS": str(self.shards) for app in PORTS}
        apps |= {"PROFILE__STATE__STORE": "postgresql", "PROFILE__STATE__DSN": self.dsn}
        return {
            **{f"ONELANE_CLUSTER__{key}": value for key, value in cluster.items()},
            **{f"ONELANE_APPS__{key}": value for key, value in apps.items()},
            "ONELANE_ADMIN": f"{address}:{ADMIN_PORT}",
            "ONELANE_ADMIN_TOKEN": self.token,
            "ARENA_DB": self.dsn,
        }


class Machine:
    """One host, with its `onelane up`."""

    def __init__(self, site: Site, host: Host) -> None:
        self.name = host.name
        self.host = host
        self.admin = Admin(f"{host.address}:{ADMIN_PORT}", site.token)
        self._site = site
        self._folder = site.folder / host.name
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start, and wait until its shards own their keys.

        Raises:
            MachineFault: it ended instead.
        """
        self._folder.mkdir()
        environment = self._site.environment_of(self.name, self.host.address) | {"TMPDIR": str(self._folder)}
        with self._log.open("w") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(*self.host.within, sys.executable, "-m", "onelane", "up", str(FILE), "--app-dir", str(ROOT)),
                env=os.environ | environment,
                cwd=self._folder,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                # Ctrl-C is not for it.
                start_new_session=True,
            )
        assert self._process.stdout is not None
        if await read_addresses(self._process.stdout, _silent) is None:
            raise MachineFault(f"machine {self.name} did not start: {self._last_words()}")

    def check(self) -> None:
        """Raises:
        MachineFault: it has ended by itself.
        """
        if self._process is not None and self._process.returncode is not None:
            raise MachineFault(f"machine {self.name} has ended by itself: {self._last_words()}")

    async def kill(self) -> None:
        """End all its processes at one moment."""
        await asyncio.to_thread(self.host.kill)
        if self._process is not None:
            await self._process.wait()

    async def leave(self) -> None:
        """Ask it to hand its keys over and to end, and wait for that.

        Raises:
            MachineFault: its exit code tells of an error.
        """
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        if code := await self._process.wait():
            raise MachineFault(f"machine {self.name} ended with exit code {code}: {self._last_words()}")

    async def keys_handed_over(self) -> int:
        """Keys with state that its shards have handed to others."""
        rows = (await self.admin.read("/metrics")).splitlines()
        return sum(int(float(row.rpartition(" ")[2])) for row in rows if row.startswith("onelane_handoff_keys_total"))

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    def _last_words(self) -> str:
        return "\n".join(self._log.read_text().splitlines()[-LOG_LINES:])


@contextmanager
def new_site(*, lease_s: int, shards: int | None) -> Iterator[Site]:
    """A network with an etcd and a PostgreSQL, and without machines; nothing of it is left at the end. Skips where
    there can be no namespaces, no etcd or no PostgreSQL."""
    need_root()
    tools.program("etcd", "Debian's package etcd-server")
    if postgres.installed() is None:
        tools.absent("PostgreSQL is not installed (Debian's package postgresql)")
    with ExitStack() as stack:
        # Short: sockets are below it. It goes last, after all who write there.
        folder = Path(tempfile.mkdtemp(prefix="arena-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        network = stack.enter_context(new_network())
        etcd_host, ca = network.host("etcd"), trustme.CA()
        files = {name: folder / f"etcd.{name}" for name in ("ca", "cert", "key")}
        certificate = ca.issue_cert(etcd_host.address)
        ca.cert_pem.write_to_path(str(files["ca"]))
        certificate.cert_chain_pems[0].write_to_path(str(files["cert"]))
        certificate.private_key_pem.write_to_path(str(files["key"]))
        options = [f"--cert-file={files['cert']}", f"--key-file={files['key']}"]
        store = stack.enter_context(etcd.etcd(*options, scheme="https", host=etcd_host))
        database = stack.enter_context(postgres.server(network.host("postgres")))
        yield Site(
            network, folder, store.url, files["ca"], database.network_dsn, lease_s, shards, secrets.token_urlsafe(16)
        )


def _silent(_: str) -> None:
    """Of what a machine prints, nothing is shown."""


@contextmanager
def resolved(name: str, addresses: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Meanwhile this event loop resolves a host name to these addresses, as a DNS server with all machines would."""
    loop: Any = asyncio.get_running_loop()
    resolve = loop.getaddrinfo

    async def getaddrinfo(host: str, port: int, **options: Any) -> Any:
        if host != name:
            return await resolve(host, port, **options)
        return [(AF_INET, SOCK_STREAM, IPPROTO_TCP, "", (address, port)) for address in addresses()]

    loop.getaddrinfo = getaddrinfo
    try:
        yield
    finally:
        loop.getaddrinfo = resolve
