"""The socket at which a shard listens for the shards of other machines."""

import errno
import ipaddress
import socket

from onelane.server.sockets import BACKLOG


def listening_at(advertised: str) -> socket.socket:
    """A socket for links on a free port: at the address that others are told, where this machine has it itself."""
    try:
        host = str(ipaddress.ip_address(advertised.strip("[]")))
    except ValueError:
        host = ""
    try:
        sock = _listening(host)
    except OSError as error:
        if not host or error.errno != errno.EADDRNOTAVAIL:
            raise
        # Such as an address of the host of a container.
        sock = _listening("::" if ":" in host else "0.0.0.0")
    sock.setblocking(False)
    return sock


def _listening(host: str) -> socket.socket:
    if host:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, 0), family=family, backlog=BACKLOG)
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", 0), family=family, backlog=BACKLOG, dualstack_ipv6=both)
