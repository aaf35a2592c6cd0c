"""Connections that are handed over between shards, in any order; see `tests/scenarios`.

Real Unix sockets and descriptors, in one process. A client's connection is named by the bytes that were read of it.
"""

import asyncio
import socket
from functools import partial
from pathlib import Path

import pytest
from onelane.server.steering import FirstBytes, Steering

from tests import scenarios

TURNS = 30
"""Turns of the loop after which nothing more happens on sockets of one process."""


class SteeringScenario:
    """Shards and clients by name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._trace: list[str] = []
        self._shards: dict[str, Steering] = {}
        self._hung: dict[str, socket.socket] = {}
        self._clients: dict[str, socket.socket] = {}
        self._served: dict[str, tuple[str, socket.socket]] = {}
        """Client → the shard that serves it, and that shard's end of the connection."""

    async def run(self, line: str) -> list[str]:
        command, *arguments = line.split()
        getattr(self, f"_{command}")(*arguments)
        for _ in range(TURNS):
            await asyncio.sleep(0)
        output, self._trace = self._trace, []
        return output

    async def aclose(self) -> None:
        for steering in self._shards.values():
            steering.close()
        for sock in (*self._hung.values(), *self._clients.values(), *(sock for _, sock in self._served.values())):
            sock.close()

    # Commands

    def _open(self, shard: str) -> None:
        take = partial(self._take, shard)
        steering = Steering(self._path(shard), adopt=partial(take, "adopts"), take_back=partial(take, "takes back"))
        steering.open()
        self._shards[shard] = steering

    def _hang(self, shard: str) -> None:
        """A shard whose lane is blocked: the kernel accepts for it, and it reads nothing."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listening.bind(f"{self._path(shard)}.steer")
        listening.listen()
        self._hung[shard] = listening

    def _connect(self, client: str, _to: str, shard: str) -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        self._clients[client] = near
        self._served[client] = (shard, far)

    def _steer(self, client: str, _to: str, owner: str) -> None:
        shard, sock = self._served[client]
        if not self._shards[shard].hand_over(self._path(owner), sock.fileno(), FirstBytes(client.encode(), 1)):
            self._trace.append(f"{shard} keeps {client}")
            return
        self._trace.append(f"{shard} hands {client} over")
        del self._served[client]
        sock.close()

    def _die(self, shard: str) -> None:
        if (listening := self._hung.pop(shard, None)) is not None:
            listening.close()
        else:
            self._shards.pop(shard).close()

    def _ask(self, client: str) -> None:
        """Whether the client's connection stands, and who answers on it."""
        if client not in self._served:
            self._trace.append(f"nobody serves {client}")
            return
        shard, sock = self._served[client]
        sock.send(shard.encode())
        self._trace.append(f"{self._clients[client].recv(64).decode()} answers {client}")

    # Events

    def _take(self, shard: str, how: str, sock: socket.socket, first: FirstBytes) -> None:
        client = first.data.decode()
        self._served[client] = (shard, sock)
        self._trace.append(f"{shard} {how} {client}, {first.answered} of {len(first.data)} bytes answered")

    def _path(self, shard: str) -> str:
        return str(self._folder / shard)


@pytest.mark.parametrize("file", scenarios.files_of(__file__), ids=lambda file: file.stem)
async def test_scenario(file: Path, tmp_path: Path) -> None:
    await scenarios.check(file, lambda: SteeringScenario(tmp_path))
