"""Handing a connection to the sibling that owns its key: its file descriptor, and the bytes read so far.

What has been answered already (SETTINGS, pings) the owner answers to itself, from the same bytes: HTTP/2 is
deterministic so far. So a connection may wait for its first request as long as it likes, and still be handed over.

Over a SOCK_SEQPACKET Unix socket for each pair of siblings, one packet for each connection. The sender keeps its copy
of the descriptor until the owner says that it has it; where the owner dies first, the sender serves the connection
itself. So a connection is served by exactly one shard, and by none only if its shard dies.
"""

import asyncio
import contextlib
import itertools
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

SUFFIX = ".steer"
MAX_SEEN = 64 * 1024
"""Bytes of a connection that may be read before it is handed over."""
_NUMBER = 8
_PACKET = MAX_SEEN + 2 * _NUMBER


@dataclass(frozen=True, slots=True)
class Seen:
    """What a connection has said before it was handed over."""

    data: bytes
    answered: int
    """How many of these bytes have been answered."""


Adopt = Callable[[socket.socket, Seen], None]


class Steering:
    """One shard's end. `adopt(socket, seen)` takes a connection in; `take_back` one that could not be handed over."""

    def __init__(self, path: str, *, adopt: Adopt, take_back: Adopt) -> None:
        self._path = path + SUFFIX
        self._adopt = adopt
        self._take_back = take_back
        self._loop = asyncio.get_running_loop()
        self._door: socket.socket | None = None
        self._inbound: set[socket.socket] = set()
        self._outbound: dict[str, socket.socket] = {}
        self._handed: dict[str, dict[int, tuple[int, Seen]]] = {}
        """Sibling → number → our copy of the descriptor, and what was read."""
        self._numbers = itertools.count(1)

    def open(self) -> None:
        """Let siblings hand connections over."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._door.bind(self._path)
        self._door.listen(128)
        self._loop.add_reader(self._door, self._let_in, self._door)

    def hand_over(self, to: str, fd: int, seen: Seen) -> bool:
        """Give the connection `fd` to the sibling whose socket is `to`. False where it cannot be reached now.

        Never waits. After True the caller closes its own descriptor without a word to the peer.
        """
        if len(seen.data) > MAX_SEEN:
            return False
        number = next(self._numbers)
        copy = os.dup(fd)
        try:
            line = self._line(to)
            head = number.to_bytes(_NUMBER, "big") + seen.answered.to_bytes(_NUMBER, "big")
            socket.send_fds(line, [head, seen.data], [copy])
        except OSError as error:
            os.close(copy)
            if not isinstance(error, BlockingIOError):
                self._lost(to)
            return False
        self._handed[to][number] = (copy, seen)
        return True

    def close(self) -> None:
        """Take nothing more, hand nothing more over. What was handed over and not taken is left to its owner."""
        for sock in ([self._door] if self._door else []) + list(self._inbound) + list(self._outbound.values()):
            self._loop.remove_reader(sock)
            sock.close()
        self._door = None
        self._inbound.clear()
        self._outbound.clear()
        for handed in self._handed.values():
            for copy, _ in handed.values():
                os.close(copy)
        self._handed.clear()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    # Giving

    def _line(self, to: str) -> socket.socket:
        line = self._outbound.get(to)
        if line is None:
            line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            try:
                line.connect(to + SUFFIX)
            except OSError:
                line.close()
                raise
            self._outbound[to] = line
            self._handed.setdefault(to, {})
            self._loop.add_reader(line, self._taken, to, line)
        return line

    def _taken(self, to: str, line: socket.socket) -> None:
        try:
            answer = line.recv(_NUMBER)
        except BlockingIOError:
            return
        except OSError:
            answer = b""
        if not answer:
            self._lost(to)
            return
        copy, _ = self._handed[to].pop(int.from_bytes(answer, "big"))
        os.close(copy)

    def _lost(self, to: str) -> None:
        """The sibling is gone: what it has not taken is ours again."""
        line = self._outbound.pop(to, None)
        if line is not None:
            self._loop.remove_reader(line)
            line.close()
        for copy, seen in self._handed.pop(to, {}).values():
            self._take_back(socket.socket(fileno=copy), seen)

    # Taking

    def _let_in(self, door: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            line, _ = door.accept()
            line.setblocking(False)
            self._inbound.add(line)
            self._loop.add_reader(line, self._take, line)

    def _take(self, line: socket.socket) -> None:
        try:
            packet, fds, _, _ = socket.recv_fds(line, _PACKET, 1)
        except BlockingIOError:
            return
        except OSError:
            packet, fds = b"", []
        if not packet or not fds:
            self._loop.remove_reader(line)
            self._inbound.discard(line)
            line.close()
            return
        # First the word, then the work: were it the other way, a death between them would have the work done twice.
        with contextlib.suppress(OSError):
            line.send(packet[:_NUMBER])
        answered = int.from_bytes(packet[_NUMBER : 2 * _NUMBER], "big")
        self._adopt(socket.socket(fileno=fds[0]), Seen(packet[2 * _NUMBER :], answered))
