"""One configuration file as a value."""

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import MinLen

from onelane.config.app import App, Tls
from onelane.config.checks import UNIX, AdminAddress, PeerTarget
from onelane.core import addresses
from onelane.core.cluster_settings import ClusterSettings
from onelane.core.validation import Checked, changed
from onelane.errors import BadConfig

DEFAULT_ADMIN = "127.0.0.1:9464"


@dataclass(frozen=True, kw_only=True)
class Config(Checked):
    """One configuration file: its apps, and the settings of their supervisor."""

    apps: Annotated[dict[str, App], MinLen(1)]
    """Name → app: the tables `[apps.NAME]`. A name has lower-case letters, digits and dashes."""
    admin: AdminAddress = DEFAULT_ADMIN
    """Address of the admin page, /metrics and /status: `ip:port`, or `unix:/path` for a socket of mode 0600."""
    admin_tls: Tls | None = None
    """Serve the admin address over TLS. With `client_ca`, a client with a certificate needs no token."""
    sinks: tuple[str, ...] = ()
    """Exporters beside Prometheus and OTLP (which `OTEL_*` variables turn on): plugins of the entry point group
    `onelane.sinks`."""
    admin_token: Annotated[str, MinLen(8)] | None = field(default=None, repr=False)
    """Bearer token for requests to the admin address; needed where that is no loopback address. Rather set it by the
    environment variable `ONELANE_ADMIN_TOKEN`, or by `admin_token_file`."""
    admin_token_file: str | None = None
    """A file that holds the `admin_token`, which none but the user of the supervisor may read; also by the environment
    variable `ONELANE_ADMIN_TOKEN_FILE`."""
    console: bool | None = None
    """Let the admin page call methods of the apps that serve reflection; by default only where `admin` is a loopback
    address or a Unix socket. Beyond, whoever has the token may call what the machine of the supervisor can reach."""
    per_shard_series: bool = True
    """Export each metric series once per shard, with the attribute `onelane.shard`; if false, their sum per app."""
    peers: Mapping[str, PeerTarget] = field(default_factory=dict)
    """Name → host:port of apps outside of this file, for `shard.stub(…, to=NAME)`."""
    cluster: ClusterSettings | None = None
    """The machines that share the keys of all apps of this file; without it, this one alone has them."""

    @property
    def has_console(self) -> bool:
        if self.console is not None:
            return self.console
        return self.admin.startswith(UNIX) or ipaddress.ip_address(addresses.split(self.admin)[0]).is_loopback

    def __post_init__(self) -> None:
        self._check_tls()
        self._check_names()
        self._check_stubs()
        self._check_callers()

    def _check_tls(self) -> None:
        if self.admin_tls is not None and self.admin.startswith(UNIX):
            raise ValueError("admin_tls: admin is a Unix socket, which has no TLS; expected ip:port")

    def _check_names(self) -> None:
        if wrong := [name for name in self.apps if not re.fullmatch(r"[a-z][a-z0-9-]{0,62}", name)]:
            raise ValueError(f"app names {wrong}: expected lower-case letters, digits and dashes")

    def _check_stubs(self) -> None:
        targets = {*self.apps, *self.peers}
        wrong = [f"{n}.stubs.{to}" for n, app in self.apps.items() for to in app.stubs if to not in targets]
        if wrong:
            raise ValueError(f"apps.{', apps.'.join(wrong)}: no app or peer is called so; known are {sorted(targets)}")

    def _check_callers(self) -> None:
        for name, app in self.apps.items():
            callers = app.auth.apps if app.auth is not None else {}
            if wrong := sorted(set(callers) - set(self.apps) - set(self.peers)):
                raise ValueError(f"apps.{name}.auth.apps {wrong}: expected apps of this file, {sorted(self.apps)}")

    def accepting(self, caller: str) -> list[str]:
        """The apps that accept assertions of identity of the app `caller`; it does itself, where it has `auth`."""
        return [
            name
            for name, app in self.apps.items()
            if app.auth is not None and (name == caller or caller in app.auth.apps)
        ]

    def only(self, app: str) -> "Config":
        """The configuration of one app of the file, to which the other apps are peers.

        Raises:
            BadConfig: the file has no such app.
        """
        if app not in self.apps:
            raise BadConfig("--app", [f"{app!r} is not in the file; it has {sorted(self.apps)}"])
        peers = {name: other.listen for name, other in self.apps.items()} | dict(self.peers)
        admin = self.apps[app].admin or self.admin
        return changed(self, apps={app: self.apps[app]}, peers=peers, admin=admin)

    def check_addresses(self) -> None:
        """Compare the addresses of all apps that run together.

        Raises:
            BadConfig: two of them are the same, or a port is past 65535.
        """
        used: dict[tuple[str, int], str] = {}
        faults = []
        for host, port, place in self._addresses():
            if port > 65535:
                faults.append(f"{place} would be port {port}, past 65535: set own_port")
            others = [other for (taken, number), other in used.items() if number == port and _overlap(taken, host)]
            if port and others:
                faults.append(f"{place}: {addresses.join(host, port)} is {others[0]} already; expected another port")
            used.setdefault((host, port), place)
        if faults:
            raise BadConfig("configuration", faults)

    def _addresses(self) -> Iterator[tuple[str, int, str]]:
        """Host, port and place in the file of every address that listens."""
        if not self.admin.startswith(UNIX):
            yield (*addresses.split(self.admin), "admin")
        if self.cluster is not None and self.cluster.xds:
            yield (*addresses.split(self.cluster.xds), "cluster.xds")
        for name, app in self.apps.items():
            yield (*addresses.split(app.listen), f"apps.{name}.listen")
        for name, app in self.apps.items():
            host = addresses.split(app.listen)[0]
            for index in range(app.shard_count):
                yield host, app.own_port_of(index), f"apps.{name}: the own address of shard {name}-{index}"


def _overlap(host: str, other: str) -> bool:
    return host == other or addresses.is_wildcard(host) or addresses.is_wildcard(other)
