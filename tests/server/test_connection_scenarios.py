"""Clients, by the bytes that they send, at two shards that hand connections to each other; see `tests/scenarios`.

Real listeners on Unix sockets in one process, without lanes: a call is answered with its key, by the shard that it came
to. Clients speak HTTP/2 frame by frame, each with one connection. A key `K-S` belongs to shard S.

    start S                   start a shard
    connect C to S            open a connection to the address that the shards share, accepted by S; nothing is sent
    greet C                   send the preface and SETTINGS
    ping C                    send a PING
    headers C [key K]         send the HEADERS of the next call, with its key in the metadata or without it
    message C K               send the key as the message of that call, and the end of its stream
    call C K                  headers and message in one write
    leave C                   close the connection
    slowly COMMAND …          the same, each byte in a write of its own
    patience SECONDS          how long shards wait for the key of a first request from now on
    stop S                    end a shard
    hang S                    end a shard; for its successor, whose lane is blocked, the kernel accepts connections
    die S                     end the successor, too

Below a command stand what the shards do with the connection, the calls that they serve, and the frames that the client
gets.
"""

import asyncio
import os
import socket
from pathlib import Path

import pytest
from onelane.config import App
from onelane.core.keys import ANY
from onelane.server import native_listener
from onelane.server.call import Call, Metadata
from onelane.server.listener import Bind, Serving
from onelane.server.methods import Method
from onelane.server.native_listener import NativeListener
from onelane.server.steering import FirstBytes

from tests import frames as h2
from tests import scenarios

ITERATIONS = 40
"""Iterations of the loop after which nothing more happens on sockets of one process."""
PATH = "/t.T/Echo"
NAMES = {
    h2.DATA: "DATA",
    h2.HEADERS: "HEADERS",
    h2.RST_STREAM: "RST_STREAM",
    h2.SETTINGS: "SETTINGS",
    h2.PING: "PING",
    h2.GOAWAY: "GOAWAY",
    h2.WINDOW_UPDATE: "WINDOW_UPDATE",
}


class Client:
    """One connection. Its name is the path that its end is bound to, so that whoever has the other end knows it."""

    def __init__(self, path: Path, address: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.bind(str(path))
        self.sock.connect(address)
        self.sock.setblocking(False)
        self.stream = -1
        self._received = b""

    def frames(self) -> list[str]:
        """What has come."""
        try:
            while data := self.sock.recv(65_536):
                self._received += data
        except BlockingIOError:
            pass
        except ConnectionError:
            return ["reset"]
        names: list[str] = []
        while len(self._received) >= 9:
            size, kind, flags = int.from_bytes(self._received[:3], "big"), self._received[3], self._received[4]
            is_ack = kind in (h2.SETTINGS, h2.PING) and flags & h2.ACK
            is_last = kind in (h2.DATA, h2.HEADERS) and flags & h2.END_STREAM
            names.append(NAMES[kind] + (" ack" if is_ack else " end" if is_last else ""))
            self._received = self._received[9 + size :]
        return names


class Lane(Serving):
    """Answers calls with their message, and knows the owner of a key by its last part."""

    def __init__(self, number: str, folder: Path, trace: list[str]) -> None:
        self._number = number
        self._folder = folder
        self._trace = trace

    def methods(self) -> list[Method]:
        return [Method(PATH, lambda *_: None, True, False, False, None, None, ANY)]

    async def serve(self, method: Method, call: Call, request: bytes | None) -> bytes:
        self._trace.append(f"{self._number} serves {(request or b'').decode()}")
        return request or b""

    def home_of(self, method: Method, metadata: Metadata, message: bytes | None) -> str | None:
        key = dict(metadata).get("onelane-key") or (message.decode() if message is not None else None)
        if key is None:
            return None
        owner = str(key).rpartition("-")[2]
        return "" if owner == self._number else str(self._folder / owner)


class Shard(NativeListener):
    """A listener that says what it does with connections."""

    def __init__(self, number: str, folder: Path, trace: list[str]) -> None:
        super().__init__()
        self._number = number
        self._folder = folder
        self._trace = trace

    async def begin(self) -> None:
        trusted = f"unix:{self._folder / self._number}"
        binds = [Bind(f"{trusted}.shared", shared=True), Bind(trusted, trusted=True)]
        settings = App(services=("a:B",), listen="127.0.0.1:0")
        await self.start(binds, Lane(self._number, self._folder, self._trace), settings)

    def hand_over(self, owner: str, fd: int, first: FirstBytes) -> bool:
        with socket.socket(fileno=os.dup(fd)) as sock:
            client = _client_of(sock)
        is_handed = super().hand_over(owner, fd, first)
        self._trace.append(f"{self._number} {'hands over' if is_handed else 'cannot hand over'} {client}")
        return is_handed

    def _adopt(self, sock: socket.socket, first: FirstBytes) -> None:
        self._trace.append(f"{self._number} takes over {_client_of(sock)}")
        super()._adopt(sock, first)


def _client_of(sock: socket.socket) -> str:
    """The name of the client at the other end."""
    return str(sock.getpeername()).rpartition("/")[2]


class ConnectionScenario:
    """Shards and clients by name."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._monkeypatch = monkeypatch
        self._trace: list[str] = []
        self._shards: dict[str, Shard] = {}
        self._hung: dict[str, socket.socket] = {}
        self._clients: dict[str, Client] = {}

    async def run(self, line: str) -> list[str]:
        words = line.split()
        slowly = words[0] == "slowly"
        command, *arguments = words[slowly:]
        data = await getattr(self, f"_{command}")(*arguments)
        for piece in self._pieces(data or b"", slowly=slowly):
            self._clients[arguments[0]].sock.sendall(piece)
            await settle()
        await settle()
        output = list(self._trace)
        self._trace.clear()
        received = {name: client.frames() for name, client in self._clients.items()}
        return output + [f"{name} gets {', '.join(names)}" for name, names in received.items() if names]

    async def aclose(self) -> None:
        for client in self._clients.values():
            client.sock.close()
        for shard in self._shards.values():
            await shard.stop(0)
        for sock in self._hung.values():
            sock.close()

    # Shards

    async def _start(self, number: str) -> None:
        self._shards[number] = Shard(number, self._folder, self._trace)
        await self._shards[number].begin()

    async def _stop(self, number: str) -> None:
        await self._shards.pop(number).stop(0)

    async def _hang(self, number: str) -> None:
        await self._stop(number)
        self._hung[number] = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._hung[number].bind(f"{self._folder / number}.steer")
        self._hung[number].listen()

    async def _die(self, number: str) -> None:
        self._hung.pop(number).close()

    async def _patience(self, seconds: str) -> None:
        self._monkeypatch.setattr(native_listener, "UNDECIDED_S", float(seconds))

    # Clients: what they send

    async def _connect(self, name: str, _to: str, shard: str) -> None:
        self._clients[name] = Client(self._folder / name, f"{self._folder / shard}.shared")

    async def _leave(self, name: str) -> None:
        self._clients.pop(name).sock.close()

    async def _greet(self, _: str) -> bytes:
        return h2.HELLO

    async def _ping(self, _: str) -> bytes:
        return h2.frame(h2.PING, b"pingpong")

    async def _headers(self, name: str, _key: str = "", key: str = "") -> bytes:
        client = self._clients[name]
        client.stream += 2
        more = [h2.field(b"onelane-key", key.encode())] if key else []
        return h2.headers(client.stream, h2.request(PATH.encode(), *more))

    async def _message(self, name: str, key: str) -> bytes:
        message = b"\0" + h2.number(len(key)) + key.encode()
        return h2.frame(h2.DATA, message, flags=h2.END_STREAM, stream=self._clients[name].stream)

    async def _call(self, name: str, key: str) -> bytes:
        return await self._headers(name) + await self._message(name, key)

    def _pieces(self, data: bytes, *, slowly: bool) -> list[bytes]:
        return [bytes([byte]) for byte in data] if slowly else [data] if data else []


async def settle() -> None:
    for _ in range(ITERATIONS):
        await asyncio.sleep(0)


@pytest.mark.parametrize("file", scenarios.files_of(__file__, "connection"), ids=lambda file: file.stem)
async def test_scenario(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No timer: who waits for the key of a first request waits until a scenario says otherwise.
    monkeypatch.setattr(native_listener, "UNDECIDED_S", 3600.0)
    await scenarios.check(file, lambda: ConnectionScenario(tmp_path, monkeypatch))
