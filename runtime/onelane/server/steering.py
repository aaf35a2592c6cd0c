"""Handing a connection to the sibling that owns its key: its file descriptor, and the bytes read so far.

The owner replays the bytes into a fresh HTTP/2 connection and drops the answers (SETTINGS, pings) that the sender has
given already: HTTP/2 is deterministic up to there. So a client may send its first request late, and is still steered.

One SOCK_SEQPACKET Unix socket for each pair of siblings, one packet for each connection. The sender keeps its copy of
the descriptor until the owner acknowledges the packet; where the owner dies first, the sender serves the connection
itself. So exactly one shard serves a connection, and none only if its shard dies.
"""

import asyncio
import contextlib
import itertools
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

SUFFIX = ".steer"
MAX_FIRST_BYTES = 64 * 1024
"""Bytes of a connection that may be read before it is copies over."""
_NUMBER = 8
_PACKET = MAX_FIRST_BYTES + 2 * _NUMBER


@dataclass(frozen=True, slots=True)
class FirstBytes:
    """The bytes that were read of a connection before its owner was known."""

    data: bytes
    answered: int
    """Of these, the bytes that have been answered."""


Adopt = Callable[[socket.socket, FirstBytes], None]


class Steering:
    """One shard's end. `adopt(socket, first)` serves a sibling's connection; `take_back` one that its owner did not
    acknowledge."""

    def __init__(self, path: str, *, adopt: Adopt, take_back: Adopt) -> None:
        self._path = path + SUFFIX
        self._adopt = adopt
        self._take_back = take_back
        self._loop = asyncio.get_running_loop()
        self._listening: socket.socket | None = None
        self._inbound: set[socket.socket] = set()
        self._outbound: dict[str, socket.socket] = {}
        self._unacknowledged: dict[str, dict[int, tuple[int, FirstBytes]]] = {}
        """Sibling → number of the packet → our copy of the descriptor, and the bytes read."""
        self._numbers = itertools.count(1)

    def open(self) -> None:
        """Listen for connections that siblings hand over."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._listening.bind(self._path)
        self._listening.listen(128)
        self._loop.add_reader(self._listening, self._accept, self._listening)

    def hand_over(self, to: str, fd: int, first: FirstBytes) -> bool:
        """Give the connection `fd` to the sibling whose socket is `to`. False where it cannot be reached now.

        Never waits. After True the caller closes its own descriptor, and sends nothing more.
        """
        if len(first.data) > MAX_FIRST_BYTES:
            return False
        number = next(self._numbers)
        copy = os.dup(fd)
        try:
            line = self._connect(to)
            head = number.to_bytes(_NUMBER, "big") + first.answered.to_bytes(_NUMBER, "big")
            socket.send_fds(line, [head, first.data], [copy])
        except OSError as error:
            os.close(copy)
            if not isinstance(error, BlockingIOError):
                self._sibling_died(to)
            return False
        self._unacknowledged[to][number] = (copy, first)
        return True

    def close(self) -> None:
        """Adopt nothing more, hand nothing more over. Packets that are not acknowledged are left to their owners."""
        for sock in (
            ([self._listening] if self._listening else []) + list(self._inbound) + list(self._outbound.values())
        ):
            self._loop.remove_reader(sock)
            sock.close()
        self._listening = None
        self._inbound.clear()
        self._outbound.clear()
        for copies in self._unacknowledged.values():
            for copy, _ in copies.values():
                os.close(copy)
        self._unacknowledged.clear()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    # The sender

    def _connect(self, to: str) -> socket.socket:
        line = self._outbound.get(to)
        if line is None:
            line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            try:
                line.connect(to + SUFFIX)
            except OSError:
                line.close()
                raise
            self._outbound[to] = line
            self._unacknowledged.setdefault(to, {})
            self._loop.add_reader(line, self._acknowledged, to, line)
        return line

    def _acknowledged(self, to: str, line: socket.socket) -> None:
        try:
            answer = line.recv(_NUMBER)
        except BlockingIOError:
            return
        except OSError:
            answer = b""
        if not answer:
            self._sibling_died(to)
            return
        copy, _ = self._unacknowledged[to].pop(int.from_bytes(answer, "big"))
        os.close(copy)

    def _sibling_died(self, to: str) -> None:
        """The sibling has died: serve the connections that it has not acknowledged."""
        line = self._outbound.pop(to, None)
        if line is not None:
            self._loop.remove_reader(line)
            line.close()
        for copy, first in self._unacknowledged.pop(to, {}).values():
            self._take_back(socket.socket(fileno=copy), first)

    # The owner

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            line, _ = listening.accept()
            line.setblocking(False)
            self._inbound.add(line)
            self._loop.add_reader(line, self._receive, line)

    def _receive(self, line: socket.socket) -> None:
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
        # Acknowledge before adopting. If we died in between, the sender would serve the connection as well.
        with contextlib.suppress(OSError):
            line.send(packet[:_NUMBER])
        answered = int.from_bytes(packet[_NUMBER : 2 * _NUMBER], "big")
        self._adopt(socket.socket(fileno=fds[0]), FirstBytes(packet[2 * _NUMBER :], answered))
