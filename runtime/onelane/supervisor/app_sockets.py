"""The listening sockets of one app, which the processes of its shards inherit.

One address is shared by all shards, each shard has one of its own, and each life that lives beside others has a Unix
socket of its own for its siblings: a life that follows a crash takes over the socket of the one that died, a life that
replaces another one has a new socket, and the same shared and own sockets.
"""

import contextlib
import os
import socket
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from onelane.config import App
from onelane.core import addresses
from onelane.core.placement import Member, shard_name
from onelane.core.validation import changed
from onelane.errors import Invalid
from onelane.server import sockets, steering
from onelane.server.unix_sockets import ListeningPath
from onelane.supervisor.socket_folder import MAX_PATH_BYTES

MOST_SHARDS, MOST_LIVES = 100, 999
"""The paths in the folder of an app's sockets must have room for the numbers of so many shards and lives, at least."""


@dataclass(frozen=True, slots=True)
class _OwnSocket:
    address: str
    """As clients reach it."""
    sock: socket.socket


class AppSockets:
    """See the module. Owned by the supervisor of all apps."""

    def __init__(self, name: str, settings: App, folder: Path, machine: str = "") -> None:
        """Claim the shared address. folder: for the Unix sockets. machine: of this one, in a cluster.

        Raises:
            PortTaken: another process has it.
        """
        self._name = name
        self._machine = machine
        self._folder = folder
        binds_many = not settings.adopts_sockets or sockets.shared_count(settings.shard_count) > 1
        listen, first = sockets.claim(settings.listen, shared=binds_many)
        self._shared = [first]
        self._own: dict[int, _OwnSocket] = {}
        self._own_port_of = settings.own_port_of
        self.settings = changed(settings, listen=listen)
        """With the real port of the shared address."""

    def claim_own(self, index: int) -> None:
        """Claim the own address of the shard of this index.

        Raises:
            PortTaken: another process has it. Invalid: there is no such port.
        """
        host, port = addresses.split(self.settings.listen)[0], self._own_port_of(index)
        if port > 65535:
            raise Invalid(f"the own address of shard {self._name}-{index} would be port {port}, past 65535")
        address, sock = sockets.claim(addresses.join(host, port), shared=False)
        bound_host, bound_port = addresses.split(address)
        reachable = addresses.join(self.settings.advertise or bound_host, bound_port)
        self._own[index] = _OwnSocket(reachable, sock)

    def has_own(self, index: int) -> bool:
        return index in self._own

    def member(self, index: int, life: int = 0) -> Member:
        """The shard of this index, whose own address has been claimed. life: of one that lives beside another."""
        path = self._folder / _socket_name(shard_name(self._name, index), life)
        return Member(shard_name(self._name, index, self._machine), self._own[index].address, str(path), life)

    def release_own(self) -> None:
        """Close the own addresses, which the shards bind themselves."""
        for own in self._own.values():
            own.sock.close()

    def listen(self) -> None:
        """Listen on the shared address, for as many shards as have an own address.

        Raises:
            PortTaken, OSError: no socket can be opened now.
        """
        for _ in range(sockets.shared_count(len(self._own)) - len(self._shared)):
            self._shared.append(sockets.listening(self.settings.listen, shared=True))
        for sock in self._shared:
            _listen(sock)

    def listen_for(self, index: int, member: Member) -> tuple[tuple[socket.socket, ...], ListeningPath]:
        """The sockets of a life: shared, own, and for siblings; and the path of the last one.

        Raises:
            OSError: no socket can be opened now. Invalid: its path is too long.
        """
        own = self._own[index].sock
        _listen(own)
        if (length := len(os.fsencode(member.socket + steering.SUFFIX))) > MAX_PATH_BYTES:
            raise Invalid(f"{member.socket}{steering.SUFFIX} would have {length} bytes, at most {MAX_PATH_BYTES}")
        siblings = sockets.listening(f"unix:{member.socket}")
        # Neighbours on different sockets: they are restarted one after another.
        return (self._shared[index % len(self._shared)], own, siblings), ListeningPath(member.socket)

    def keep(self, indices: Collection[int], shared: Collection[socket.socket]) -> None:
        """Close the own addresses of shards that the app does not have, so that connections to them are refused; and
        the shared sockets that no shard accepts from, in whose queues connections would wait without end."""
        for index in [index for index in self._own if index not in indices]:
            self._own.pop(index).sock.close()
        for sock in [sock for sock in self._shared if sock not in shared]:
            self._shared.remove(sock)
            sock.close()

    def close(self) -> None:
        for sock in (*self._shared, *(own.sock for own in self._own.values())):
            sock.close()


def longest_socket_name(app: str, shards: int) -> str:
    """Of the files that the folder will hold for an app that starts with so many shards."""
    return _socket_name(f"{app}-{max(shards, MOST_SHARDS) - 1}", MOST_LIVES) + steering.SUFFIX


def remove_paths(member: Member) -> None:
    """After the last life that had this socket has ended."""
    for path in (member.socket, member.socket + steering.SUFFIX):
        with contextlib.suppress(OSError):
            os.unlink(path)


def _socket_name(shard: str, life: int) -> str:
    return f"{shard}.{life}.sock" if life else f"{shard}.sock"


def _listen(sock: socket.socket) -> None:
    sock.listen(sockets.BACKLOG)
    sock.setblocking(False)
