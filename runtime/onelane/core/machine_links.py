"""Links between machines: what a shard needs for them, how the lives of other machines are addressed, and whose
certificate counts. Pure.

A link carries between the shards of two machines what a sibling's Unix socket carries within one. (How the frames of a
call are written on such a socket is another matter: `wire/link`.)

Every machine has one certificate for its links, with the name `MACHINE.CLUSTER.onelane.internal` among the DNS names of
its subject alternative names. The cluster is a part of it, so that an authority that signs for others as well, or for
two clusters, opens no door between them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from onelane.core import addresses

DOMAIN = "onelane.internal"
"""`.internal` is reserved for names that no public DNS has."""


@dataclass(frozen=True, slots=True)
class LinkFiles:
    """PEM files for mutual TLS between machines."""

    ca: str
    """The authorities that sign the certificates of all machines."""
    cert: str
    """This machine's certificate chain. It is a server's and a client's."""
    key: str
    """The private key of `cert`."""


@dataclass(frozen=True, slots=True)
class MachineLinks:
    """Who this machine is to the others, and how its links are secured."""

    cluster: str
    machine: str
    """The name of this one."""
    files: LinkFiles | None
    """None where links are insecure: without TLS, and open to whoever reaches their ports."""

    @property
    def name(self) -> str:
        """The name in this machine's certificate."""
        return certificate_name(self.machine, self.cluster)

    def fault_of(self, names: Iterable[str], machine: str = "") -> str:
        """Why a peer is refused whose certificate has these DNS names; "" where it is a machine of this cluster.

        machine: that it must be; "" for any.
        """
        domain = f".{self.cluster}.{DOMAIN}".lower()
        lowered = {name.lower() for name in names}
        own = {name for name in lowered if name.endswith(domain) and name != domain and "*" not in name}
        if machine:
            expected = certificate_name(machine, self.cluster)
            return "" if expected.lower() in own else f"its certificate is of {_listed(lowered)}, not of {expected}"
        return "" if own else f"its certificate is of {_listed(lowered)}, of no machine of the cluster {self.cluster}"


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """Where the life of a shard is reached from other machines. As text, `Member.socket` has it in place of a path."""

    machine: str
    host: str
    """An IP address, or a name."""
    port: int
    """Of this life alone."""

    def __str__(self) -> str:
        return f"{self.machine}@{addresses.join(self.host, self.port)}"

    @property
    def target(self) -> str:
        """To be dialled."""
        return addresses.join(self.host, self.port)


def link_address_of(text: str) -> LinkAddress:
    """The address in `Member.socket` of a member that `is_remote`.

    Raises:
        ValueError: it is none.
    """
    machine, _, target = text.rpartition("@")
    if not machine or not target.rpartition(":")[2].isdigit():
        raise ValueError(f"{text!r} is no address of a link, expected machine@host:port")
    host, port = addresses.split(target)
    return LinkAddress(machine, host, port)


def certificate_name(machine: str, cluster: str) -> str:
    """The DNS name that the certificate of a machine must have for its links."""
    return f"{machine}.{cluster}.{DOMAIN}"


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "no DNS name"
