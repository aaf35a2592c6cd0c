"""Exactly one shard serves a connection that is handed over, whatever the order of what its sender and its owner do.

Every order of these steps is played: a connection is handed over, the owner reads, the sender reads, the owner drains,
the sender drains. Real sockets; the loop calls a reader only when the test says so.
"""

import asyncio
import itertools
import os
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from onelane.server.connection import NativeConnection
from onelane.server.native_listener import NativeListener
from onelane.server.steering import FirstBytes, Steering
from onelane.testing import Cluster
from onelane.wire import unix_peers

from tests.bounds import BOUND_S
from tests.echo.service import Echo
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest

WHILE_STOPPED = ("hand over", "hand over", "owner reads", "owner reads", "sender reads", "sender gives up")
STEPS = ("hand over", "hand over", "owner reads", "owner reads", "sender reads", "owner drains", "sender drains")


class ManualLoop:
    """The readers of one shard, which run when the test says so."""

    def __init__(self) -> None:
        self.readers: dict[socket.socket, Callable[[], Any]] = {}

    def add_reader(self, sock: socket.socket, callback: Callable[..., Any], *arguments: Any) -> None:
        self.readers[sock] = lambda: callback(*arguments)

    def remove_reader(self, sock: socket.socket) -> None:
        self.readers.pop(sock, None)

    def run_once(self) -> bool:
        """Call each reader whose socket has something, once; whether there was any."""
        ready, _, _ = select.select(list(self.readers), [], [], 0)
        for sock in ready:
            if sock in self.readers:
                self.readers[sock]()
        return bool(ready)


class Pair:
    """A sender and an owner, and who serves which connection."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.served: dict[str, list[str]] = {}
        self.open: dict[str, Steering] = {}
        self._loops = {"sender": ManualLoop(), "owner": ManualLoop()}
        self._path = str(folder / "owner")
        self._clients: list[socket.socket] = []
        for name, loop in self._loops.items():
            monkeypatch.setattr(asyncio, "get_running_loop", lambda loop=loop: loop)
            serve = self._serve(name)
            self.open[name] = Steering(str(folder / name), adopt=serve, take_back=serve)
            self.open[name].open()

    def _serve(self, name: str) -> Callable[[socket.socket, FirstBytes], None]:
        def serve(sock: socket.socket, first: FirstBytes) -> None:
            sock.close()
            self.served[first.data.decode()].append(name)

        return serve

    def play(self, step: str) -> None:
        who, _, what = step.partition(" ")
        if step == "hand over":
            self._hand_over(f"c{len(self.served)}")
        elif what == "gives up":
            self.open[who].give_up(self._path)
        elif what == "reads":
            self._loops[who].run_once()
        elif what == "dies":
            self._die(who)
        elif who in self.open:
            self.open.pop(who).close()

    def _die(self, who: str) -> None:
        """Close every descriptor of a shard, as the kernel does; nothing of the shard runs."""
        shard = self.open.pop(who)
        self._loops[who].readers.clear()
        inbound = [sock for pair in shard._inbound.items() for sock in pair]
        lines = [*shard._outbound.values(), *shard._ending]
        for sock in (
            shard._listening,
            *inbound,
            *(sock for line in lines for sock in (line.packets, line.acknowledgements)),
        ):
            if sock is not None:
                sock.close()
        for line in lines:
            for copy, _ in line.unacknowledged.values():
                os.close(copy)

    def _hand_over(self, client: str) -> None:
        near, far = socket.socketpair()
        self._clients.append(near)
        self.served[client] = []
        if "sender" not in self.open or not self.open["sender"].hand_over(
            self._path, far.fileno(), FirstBytes(client.encode(), 0)
        ):
            self.served[client].append("sender, which kept it")
        far.close()

    def is_cut(self, client: str) -> bool:
        """Whether this client sees the end of its connection."""
        return bool(select.select([self._clients[int(client[1:])]], [], [], 0)[0])

    def settle(self) -> None:
        while sum(loop.run_once() for loop in self._loops.values()):
            pass

    def close(self) -> None:
        for shard in self.open.values():
            shard.close()
        for client in self._clients:
            client.close()


def orders(steps: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    return iter(sorted(set(itertools.permutations(steps))))


def test_exactly_one_shard_serves_a_connection_in_every_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = 0
    for number, order in enumerate(orders(STEPS)):
        folder = tmp_path / str(number)
        folder.mkdir()
        pair = Pair(folder, monkeypatch)
        for step in order:
            pair.play(step)
        pair.settle()
        pair.close()
        for servers in pair.served.values():
            # Where both drain, nobody may be left to serve it; its client's requests have run nowhere then.
            assert len(servers) <= 1, (order, pair.served)
            lost += not servers
    # Of the orders in which the sender drains before it knows, and the owner before it reads.
    assert lost


def test_a_connection_that_is_given_up_is_served_by_nobody_or_by_its_owner_and_never_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = 0
    for number, order in enumerate(orders(WHILE_STOPPED)):
        folder = tmp_path / str(number)
        folder.mkdir()
        pair = Pair(folder, monkeypatch)
        for step in order:
            pair.play(step)
        pair.settle()
        for client, servers in pair.served.items():
            assert len(servers) <= 1, (order, pair.served)
            assert servers or pair.is_cut(client), (order, client)
            cut += not servers
        pair.close()
    assert cut


def test_a_connection_is_served_by_the_one_shard_that_neither_drains_nor_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender's own death is left out: it takes what its owner has not read with it."""
    for end in ("owner drains", "sender drains", "owner dies"):
        steps = [step for step in STEPS if not step.endswith("drains")] + [end]
        for number, order in enumerate(sorted(set(itertools.permutations(steps)))):
            folder = tmp_path / f"{end}{number}"
            folder.mkdir()
            pair = Pair(folder, monkeypatch)
            for step in order:
                pair.play(step)
            pair.settle()
            pair.close()
            assert all(len(servers) == 1 for servers in pair.served.values()), (order, pair.served)


def test_an_owner_whose_path_was_removed_gets_connections_again_once_it_has_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(tmp_path, monkeypatch)
    (tmp_path / "owner.steer").unlink()
    pair.play("hand over")
    pair.open["owner"].keep_open()
    pair.play("hand over")
    pair.settle()
    pair.close()
    assert list(pair.served.values()) == [["sender, which kept it"], ["owner"]]


def test_no_connection_is_handed_to_another_user_who_has_taken_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(unix_peers, "check_own", refuse)
    pair = Pair(tmp_path, monkeypatch)
    pair.play("hand over")
    pair.settle()
    pair.close()
    assert list(pair.served.values()) == [["sender, which kept it"]]


async def test_a_sender_that_drains_does_not_serve_what_it_has_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    drains: list[asyncio.Task[None]] = []
    hand_over, decided = NativeListener.hand_over, NativeListener.decided
    handed_over: list[str] = []

    def note_hand_over(listener: NativeListener, owner: str, fd: int, first: FirstBytes) -> bool:
        is_handed_over = hand_over(listener, owner, fd, first)
        handed_over.extend([owner] * is_handed_over)
        return is_handed_over

    def drain_if_handed_over(listener: NativeListener, connection: NativeConnection) -> None:
        decided(listener, connection)
        if handed_over:
            handed_over.clear()
            drains.append(asyncio.ensure_future(connection.close_gracefully()))

    monkeypatch.setattr(NativeListener, "hand_over", note_hand_over)
    monkeypatch.setattr(NativeListener, "decided", drain_if_handed_over)
    async with Cluster(Echo, shards=2) as cluster:
        shared = cluster._shards(None)[0].sockets[0].getsockname()
        for key in map(str, range(20)):
            async with grpc.aio.insecure_channel(f"unix:{shared}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
                await echo_pb2_grpc.EchoStub(channel).Unary(EchoRequest(key=key), timeout=BOUND_S)
        assert drains
        await asyncio.gather(*drains)
        assert [cluster.service(Echo, shard=cluster.owner_of(key)).seen[key] for key in map(str, range(20))] == [1] * 20
