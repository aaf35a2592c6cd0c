"""A Unix socket is used only where a process of this user, or of root, listens behind it."""

import os
import struct

import pytest
from onelane.wire import unix_peers


class Peer:
    """A connected socket, as far as its credentials go."""

    def __init__(self, user: int) -> None:
        self._user = user

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
        return struct.pack("3i", 1, self._user, 1)


@pytest.mark.parametrize("user", [0, os.geteuid()])
def test_a_process_of_this_user_or_of_root_is_ours(user: int) -> None:
    unix_peers.check_own(Peer(user))


def test_a_process_of_another_user_is_refused() -> None:
    with pytest.raises(PermissionError, match="another user"):
        unix_peers.check_own(Peer(os.geteuid() + 1))
