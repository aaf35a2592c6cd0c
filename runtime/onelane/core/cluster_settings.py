"""`[cluster]`: the machines that run the apps of this file together, and the etcd on which they agree. Pure."""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Le, MaxLen, MinLen

from onelane.core import addresses
from onelane.core.validation import NO_SECRET, Check, Checked, Convert, Secret

CLUSTER_NAME = r"[a-z0-9][a-z0-9-]{0,62}"
MACHINE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}"
HOST_NAME = r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*"


def _cluster_name(text: str) -> str:
    if not re.fullmatch(CLUSTER_NAME, text):
        raise ValueError(f"{text!r}: expected 1 to 63 of a-z, 0-9 and -, not with - first")
    return text


def _machine_name(text: str) -> str:
    if text and not re.fullmatch(MACHINE_NAME, text):
        raise ValueError(f"{text!r}: expected at most 253 letters, digits, dots, - and _, a letter or digit first")
    return text


def faults_of_names(cluster: str, machines: Iterable[str]) -> list[str]:
    """What is wrong with the names of a cluster and of machines, as `[cluster]` would tell it."""
    faults = []
    for check, name in [(_cluster_name, cluster), *((_machine_name, machine) for machine in machines)]:
        try:
            check(name)
        except ValueError as error:
            faults.append(str(error))
    return faults


def _reachable_host(text: str) -> str:
    """An address or a name, without a port: the ports are those of the apps."""
    try:
        address = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        if re.fullmatch(HOST_NAME, text) and not re.fullmatch(r"[\d.]+", text):
            return text
        raise ValueError(f"{text!r}: expected an IP address or the name of a host, without a port") from None
    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"{text!r} is no address at which other machines reach this one")
    return text


def _etcd_url(text: str) -> str:
    # Only with a cluster.
    from urllib.parse import urlsplit

    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        url, port = urlsplit(""), None
    if url.username is not None or url.password is not None:
        # Not shown: it has a secret.
        raise ValueError("expected a url without a user name and a password: etcd_user and etcd_password are for these")
    if url.scheme not in ("http", "https") or not url.hostname or not port or url.path not in ("", "/") or url.query:
        raise ValueError(f"{text!r}: expected the client address of an etcd member, such as https://10.0.0.5:2379")
    return text


def _urls(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def _host_of(url: str) -> str:
    from urllib.parse import urlsplit

    return urlsplit(url).hostname or ""


def _xds_address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    try:
        ipaddress.ip_address(host.strip("[]"))
        is_port = port.isdigit() and int(port) <= 65535
    except ValueError:
        is_port = False
    if text and not (colon and is_port):
        raise ValueError("expected ip:port, such as 0.0.0.0:18000")
    return text


def _port_range(text: str) -> str:
    first, dash, last = text.partition("-")
    is_range = bool(dash) and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last) <= 65535
    if text and not is_range:
        raise ValueError(f"{text!r}: expected FIRST-LAST, such as 20000-20099")
    return text


@dataclass(frozen=True, kw_only=True)
class ClusterTls(Checked):
    """PEM files of one side of mutual TLS."""

    ca: str
    """The authority that has signed the certificates of the others."""
    cert: str
    """This machine's certificate chain."""
    key: str
    """The private key of `cert`."""


@dataclass(frozen=True, kw_only=True)
class EtcdTls(Checked):
    """PEM files for https to etcd."""

    ca: str | None = None
    """The authority that has signed etcd's certificates; without it, the system's."""
    cert: str | None = None
    """A client's certificate chain, where etcd asks for one."""
    key: str | None = None
    """The private key of `cert`."""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key: expected both or none")


@dataclass(frozen=True, kw_only=True)
class ClusterSettings(Checked):
    """The machines that share the keys of all apps of the file. In the file: `[cluster]`."""

    name: Annotated[str, Check(_cluster_name)]
    """The same on all machines of a cluster, and another one for each cluster of an etcd."""
    etcd: Annotated[tuple[Annotated[str, Check(_etcd_url)], ...], MinLen(1), MaxLen(16), Convert(_urls)]
    """The client addresses of etcd's members; in an environment variable with commas between them."""
    etcd_user: str = ""
    """Where etcd has users; it needs to read and write keys that begin with `/onelane/NAME/`."""
    etcd_password: Secret = NO_SECRET
    """Of `etcd_user`."""
    etcd_password_file: str | None = None
    """The file that has it; read at the start."""
    etcd_tls: EtcdTls | None = None
    """For addresses of https."""
    machine: Annotated[str, Check(_machine_name)] = ""
    """The name of this machine, unique in the cluster; without it, the host's."""
    advertise: Annotated[str, Check(_reachable_host)]
    """The IP address or host name by which the other machines reach this one. An address is also that of apps which
    listen on all addresses and have no `advertise` of their own."""
    lease_s: Annotated[int, Ge(2), Le(60)] = 5
    """Seconds after which a machine that etcd does not hear of is given up, and its keys are served elsewhere. It stops
    by itself after four fifths of them."""
    link_ports: Annotated[str, Check(_port_range)] = ""
    """The TCP ports for links between machines, `FIRST-LAST`, for firewalls: one for each shard of this machine, and as
    many again for those that replace them; without it, the system chooses."""
    xds: Annotated[str, Check(_xds_address)] = ""
    """The address of an xDS server on this machine, by which stock clients follow the placements of all apps
    (`onelane cluster bootstrap`); without it, there is none."""
    tls: ClusterTls | None = None
    """Of the links between machines."""
    insecure: bool = False
    """Links between machines, and to etcd, without TLS: whoever can reach them can read and change all state."""

    @property
    def xds_server(self) -> str:
        """`host:port` of this machine's xDS server, as clients reach it; "" without one."""
        if not self.xds:
            return ""
        host, port = addresses.split(self.xds)
        return addresses.join(self.advertise.strip("[]") if addresses.is_wildcard(host) else host, port)

    @property
    def ports_of_links(self) -> Sequence[int]:
        """0 where the system chooses."""
        if not self.link_ports:
            return (0,)
        first, _, last = self.link_ports.partition("-")
        return range(int(first), int(last) + 1)

    def __post_init__(self) -> None:
        if bool(self.etcd_user) != bool(self.etcd_password.text):
            raise ValueError("etcd_user and etcd_password: expected both or none")
        if self.insecure and self.tls is not None:
            raise ValueError("insecure = true and [cluster.tls]: expected one of them")
        if not self.insecure and self.tls is None:
            raise ValueError("[cluster.tls] is missing: links between machines are mutual TLS (or insecure = true)")
        plain = [url for url in self.etcd if url.startswith("http:")]
        if plain and self.etcd_tls is not None:
            raise ValueError(f"etcd_tls is set, and {plain[0]} is not https")
        far = [url for url in plain if not addresses.is_loopback(_host_of(url))]
        if far and not self.insecure:
            raise ValueError(f"{far[0]} is not https: who can reach this etcd owns the cluster (or insecure = true)")
