"""Handing a connection to the sibling that owns its key: its file descriptor, and the bytes read so far.

The owner replays the bytes into a fresh HTTP/2 connection and drops the answers (SETTINGS, pings) that the sender has
given already: HTTP/2 is deterministic up to there. So a client may send its first request late, and is still steered.

One SOCK_SEQPACKET Unix socket for each pair of siblings, one packet for each connection. The sender keeps its copy of
the descriptor until the owner acknowledges the packet; where the owner dies first, the sender serves the connection
itself. So exactly one shard serves a connection, and none only if its shard dies, or does not tick: then the sender
shuts it.

Acknowledgements take a way of their own, on which the sender sends nothing: a socket that is closed with unread packets
resets its peer, and on one way for both that reset overtakes the acknowledgements, so two shards would serve one
connection.
"""

import asyncio
import contextlib
import itertools
import os
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from onelane.server import unix_sockets
from onelane.server.unix_sockets import ListeningPath
from onelane.wire import unix_peers

SUFFIX = ".steer"
MAX_FIRST_BYTES = 64 * 1024
"""Bytes of a connection that may be read before it is copies over."""
_NUMBER = 8
_PACKET = MAX_FIRST_BYTES + 2 * _NUMBER
_HELLO = b"acknowledge here"
"""The first packet, with the descriptor on which the sender reads acknowledgements."""


@dataclass(frozen=True, slots=True)
class FirstBytes:
    """The bytes that were read of a connection before its owner was known."""

    data: bytes
    answered: int
    """Of these, the bytes that have been answered."""


Adopt = Callable[[socket.socket, FirstBytes], None]
MAX_UNACKNOWLEDGED = 128
"""Connections handed to one sibling that it has not acknowledged. So many acknowledgements fit in a socket's buffer."""


@dataclass(eq=False, slots=True)
class _Line:
    """To one sibling."""

    packets: socket.socket
    acknowledgements: socket.socket
    unacknowledged: dict[int, tuple[int, FirstBytes]] = field(default_factory=dict)
    """Number of the packet → our copy of the descriptor, and the bytes read."""


class Steering:
    """One shard's end. `adopt(socket, first)` serves a sibling's connection; `take_back` one that its owner did not
    acknowledge."""

    def __init__(self, path: str, *, adopt: Adopt, take_back: Adopt) -> None:
        self._path = path + SUFFIX
        self._adopt = adopt
        self._take_back = take_back
        self._loop = asyncio.get_running_loop()
        self._listening: socket.socket | None = None
        self._listening_path: ListeningPath
        self._inbound: dict[socket.socket, socket.socket | None] = {}
        """A sibling's packets → where they are acknowledged; None until its first packet has said so."""
        self._outbound: dict[str, _Line] = {}
        self._ending: set[_Line] = set()
        """Lines whose owner takes no more, and may still have acknowledged some."""
        self._is_closed = False
        self._numbers = itertools.count(1)

    def open(self) -> None:
        """Listen for connections that siblings hand over."""
        self._listening = unix_sockets.listening(self._path, socket.SOCK_SEQPACKET)
        self._listening_path = ListeningPath(self._path)
        self._loop.add_reader(self._listening, self._accept, self._listening)

    def keep_open(self) -> None:
        """Listen anew where the path has been removed. Packets of siblings that were not accepted yet stay theirs.

        Raises:
            OSError: see `unix_sockets.listening`.
        """
        if self._listening is not None and not self._listening_path.is_in_place:
            replaced = self._listening
            self.open()
            self._loop.remove_reader(replaced)
            replaced.close()

    def hand_over(self, to: str, fd: int, first: FirstBytes) -> bool:
        """Give the connection `fd` to the sibling whose socket is `to`. False where it cannot be reached now.

        Never waits. After True the caller closes its own descriptor, and sends nothing more.
        """
        if self._is_closed or len(first.data) > MAX_FIRST_BYTES:
            return False
        number = next(self._numbers)
        copy = os.dup(fd)
        try:
            line = self._line(to)
            if len(line.unacknowledged) >= MAX_UNACKNOWLEDGED:
                raise BlockingIOError
            head = number.to_bytes(_NUMBER, "big") + first.answered.to_bytes(_NUMBER, "big")
            socket.send_fds(line.packets, [head, first.data], [copy])
        except OSError as error:
            os.close(copy)
            if not isinstance(error, BlockingIOError) and to in self._outbound:
                # Its acknowledgements are read to their end: then it is known which packets it has taken.
                self._ending.add(self._outbound.pop(to))
            return False
        line.unacknowledged[number] = (copy, first)
        return True

    def give_up(self, to: str) -> None:
        """Shut the connections that were handed to a sibling whose lane does not tick. It may still tick again and read
        them, so nobody else may serve them; and their clients are not to wait for it."""
        line = self._outbound.get(to)
        if line is None:
            return
        for copy, _ in line.unacknowledged.values():
            with socket.socket(fileno=copy) as connection, contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        line.unacknowledged.clear()

    def close(self) -> None:
        """Adopt nothing more, hand nothing more over. Packets that are not acknowledged are left to their owners."""
        self._is_closed = True
        if self._listening is not None:
            self._loop.remove_reader(self._listening)
            self._listening.close()
            self._listening = None
        for packets in list(self._inbound):
            self._forget(packets)
        for line in (*self._outbound.values(), *self._ending):
            self._end(line)
            for copy, _ in line.unacknowledged.values():
                os.close(copy)
        self._outbound.clear()
        self._ending.clear()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    # The sender

    def _line(self, to: str) -> _Line:
        line = self._outbound.get(to)
        if line is None:
            with contextlib.ExitStack() as opened:
                packets = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
                opened.callback(packets.close)
                packets.connect(to + SUFFIX)
                unix_peers.check_own(packets)
                near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
                opened.callback(near.close)
                with far:
                    socket.send_fds(packets, [_HELLO], [far.fileno()])
                opened.pop_all()
            line = self._outbound[to] = _Line(packets, near)
            self._loop.add_reader(near, self._acknowledged, to, line)
        return line

    def _acknowledged(self, to: str, line: _Line) -> None:
        try:
            answer = line.acknowledgements.recv(_NUMBER)
        except BlockingIOError:
            return
        except OSError:
            answer = b""
        if not answer:
            self._sibling_ended(to, line)
            return
        handed_over = line.unacknowledged.pop(int.from_bytes(answer, "big"), None)
        if handed_over is not None:
            # Else it was given up, just when its owner took it.
            os.close(handed_over[0])

    def _sibling_ended(self, to: str, line: _Line) -> None:
        """Every acknowledgement has been read: serve the connections that the sibling has not taken."""
        if self._outbound.get(to) is line:
            del self._outbound[to]
        self._ending.discard(line)
        self._end(line)
        for copy, first in line.unacknowledged.values():
            self._take_back(socket.socket(fileno=copy), first)

    def _end(self, line: _Line) -> None:
        self._loop.remove_reader(line.acknowledgements)
        line.acknowledgements.close()
        line.packets.close()

    # The owner

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            packets, _ = listening.accept()
            packets.setblocking(False)
            self._inbound[packets] = None
            self._loop.add_reader(packets, self._receive, packets)

    def _receive(self, packets: socket.socket) -> None:
        try:
            packet, fds, _, _ = socket.recv_fds(packets, _PACKET, 1)
        except BlockingIOError:
            return
        except OSError:
            packet, fds = b"", []
        if not packet or not fds:
            self._forget(packets)
            return
        acknowledgements = self._inbound[packets]
        if acknowledgements is None:
            self._inbound[packets] = socket.socket(fileno=fds[0])
            return
        # Acknowledge before adopting. If we died in between, the sender would serve the connection as well.
        with contextlib.suppress(OSError):
            acknowledgements.send(packet[:_NUMBER])
        connection = socket.socket(fileno=fds[0])
        if _is_shut(connection):
            # The sender has given it up, or the client has reset it: nobody would get an answer.
            connection.close()
            return
        answered = int.from_bytes(packet[_NUMBER : 2 * _NUMBER], "big")
        self._adopt(connection, FirstBytes(packet[2 * _NUMBER :], answered))

    def _forget(self, packets: socket.socket) -> None:
        self._loop.remove_reader(packets)
        acknowledgements = self._inbound.pop(packets)
        packets.close()
        if acknowledgements is not None:
            acknowledgements.close()


def _is_shut(connection: socket.socket) -> bool:
    """Whether both directions of a socket have been shut on this machine. A client that closes shuts but one."""
    poll = select.poll()
    poll.register(connection, 0)
    return bool(poll.poll(0))
