"""The user at the other end of a Unix socket."""

import os
import socket
import struct
import sys
from typing import Protocol

_CREDENTIALS = struct.Struct("3i")
"""Process, user and group: `struct ucred`."""


class _Socket(Protocol):
    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...


def check_own(sock: _Socket) -> None:
    """Make sure that the other end of a connected Unix socket is of this user, or of root; on Linux.

    A path may lead to another user's socket, where the folder of ours has been removed and another user has made it
    anew.

    Raises:
        PermissionError: another user listens there.
    """
    if sys.platform != "linux":
        return
    _, user, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if user not in (os.geteuid(), 0):
        raise PermissionError(f"the socket belongs to another user ({user})")
