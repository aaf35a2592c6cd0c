"""The socket at which a shard listens for the shards of other machines."""

import errno
import ipaddress
import socket
from collections.abc import Sequence

from onelane.server.sockets import BACKLOG


def listening_at(advertised: str, ports: Sequence[int]) -> socket.socket:
    """A socket for links: at the address that others are told, where this machine has it itself. ports: the first that
    is free; 0 for one that the system chooses.

    Raises:
        OSError: none of them is free, or this process may open no more files.
    """
    for port in ports:
        try:
            return _listening_at(advertised, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    taken = f"no port of cluster.link_ports, {ports[0]}-{ports[-1]}, is free at {advertised}: expected more of them"
    raise OSError(errno.EADDRINUSE, taken)


def _listening_at(advertised: str, port: int) -> socket.socket:
    try:
        host = str(ipaddress.ip_address(advertised.strip("[]")))
    except ValueError:
        host = ""
    try:
        sock = _listening(host, port)
    except OSError as error:
        if not host or error.errno != errno.EADDRNOTAVAIL:
            raise
        # Such as an address of the host of a container.
        sock = _listening("::" if ":" in host else "0.0.0.0", port)
    sock.setblocking(False)
    return sock


def _listening(host: str, port: int) -> socket.socket:
    if host:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
