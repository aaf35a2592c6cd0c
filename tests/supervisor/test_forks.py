"""The fork server as the supervisor has it: processes, their ends, and servers that cannot serve any more."""

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from onelane.supervisor import forks, server_process
from onelane.supervisor.forks import ForkedProcess, ForkServer, NotForked

from tests.bounds import BOUND_S
from tests.running_app import ROOT, eventually, is_running
from tests.supervisor.forked import CHANGED, UNFIT


class Obedient:
    """A forked process, and the line over which it is told what to do."""

    def __init__(self, process: ForkedProcess, line: socket.socket) -> None:
        self.process = process
        self._line = line

    async def ask(self, order: str = "") -> int:
        """What it answers; at first the number of its process."""
        loop = asyncio.get_running_loop()
        if order:
            await loop.sock_sendall(self._line, f"{order}\n".encode())
        return int(await asyncio.wait_for(loop.sock_recv(self._line, 100), BOUND_S))

    async def exit(self, code: int) -> int | None:
        await asyncio.get_running_loop().sock_sendall(self._line, f"exit {code}\n".encode())
        return await self.ended()

    async def ended(self) -> int | None:
        return await asyncio.wait_for(self.process.wait(), BOUND_S)


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ForkServer]:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(server_process, "SERVER", (sys.executable, "-m", "tests.supervisor.forked"))
    server = ForkServer()
    yield server
    server.close()


@asynccontextmanager
async def fork(server: ForkServer) -> AsyncIterator[Obedient]:
    near, far = socket.socketpair()
    near.setblocking(False)
    with near:
        with far:
            process = await server.start([far.fileno()])
        forked = Obedient(process, near)
        assert await forked.ask() == process.pid
        yield forked
    await forked.ended()


async def test_a_process_is_forked_and_its_end_is_known_with_its_code(server: ForkServer) -> None:
    async with fork(server) as first, fork(server) as second:
        assert await first.ask("parent") == await second.ask("parent")
        assert (await first.exit(7), first.process.returncode) == (7, 7)
        second.process.kill()
        assert await second.ended() == -signal.SIGKILL
        # It is too late, and harms nobody who has the number by now.
        second.process.kill()


async def test_a_process_has_no_descriptor_of_the_server_or_of_its_siblings(server: ForkServer) -> None:
    async with fork(server) as first, fork(server) as second:
        # Its standard streams, its line, and the folder that it lists.
        assert [await first.ask("descriptors"), await second.ask("descriptors")] == [5, 5]


async def test_a_process_outlives_its_server_and_the_next_one_is_forked_by_another(server: ForkServer) -> None:
    async with fork(server) as first:
        killed = server._server
        assert killed is not None
        os.kill(await first.ask("parent"), signal.SIGKILL)
        await eventually(lambda: killed.is_gone)
        assert await first.ask("descriptors") == 5
        async with fork(server) as second:
            assert await second.ask("parent") == server._server.process.pid  # type: ignore[union-attr]
        assert await first.exit(7) is None


async def test_a_server_that_does_not_answer_is_killed(
    server: ForkServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with fork(server) as first:
        stopped = await first.ask("parent")
        os.kill(stopped, signal.SIGSTOP)
        monkeypatch.setattr(forks, "FORK_ANSWER_S", 0.05)
        with pytest.raises(NotForked):
            await server.start([0])
        await eventually(lambda: not is_running(stopped))
        assert "supervisor.fork_server_killed" in caplog.text


async def test_a_request_that_is_given_up_is_not_answered_to_the_next_one(server: ForkServer) -> None:
    async with fork(server) as first:
        near, far = socket.socketpair()
        with near, far:
            given_up = asyncio.create_task(server.start([far.fileno()]))
            await asyncio.sleep(0)
            given_up.cancel()
            # It is forked all the same; what it has inherited is closed with its line.
            assert await asyncio.to_thread(near.recv, 100)
        async with fork(server) as second:
            assert await second.exit(4) == 4
        assert await first.exit(3) == 3


async def test_nothing_is_forked_that_has_imported_a_file_as_it_is_no_more(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv(CHANGED, str(tmp_path / "changed"))
    async with fork(server) as first:
        old = await first.ask("parent")
        (tmp_path / "changed").touch()
        monkeypatch.setenv(CHANGED, "")
        # The environment differs as well: so would that of a fresh process.
        async with fork(server) as second:
            assert await second.ask("parent") != old
        assert await first.exit(3) == 3
    await eventually(lambda: not is_running(old))


async def test_a_stale_server_is_replaced(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv(CHANGED, str(tmp_path / "changed"))
    async with fork(server) as first:
        (tmp_path / "changed").touch()
        starting = asyncio.create_task(parent_of_next(server))
        await eventually(lambda: "supervisor.fork_server_renewed" in caplog.text)
        (tmp_path / "changed").unlink()
        parent = await starting
        assert parent == server._server.process.pid != await first.ask("parent")  # type: ignore[union-attr]


async def parent_of_next(server: ForkServer) -> int:
    async with fork(server) as forked:
        return await forked.ask("parent")


async def test_a_server_that_is_unfit_is_not_asked_again(
    server: ForkServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(UNFIT, "it has 2 threads")
    for _ in range(2):
        with pytest.raises(NotForked):
            await server.start([0])
    assert caplog.text.count("supervisor.no_fork_server reason=it has 2 threads") == 1


async def test_after_a_server_that_ended_while_it_imported_the_next_one_is_tried(
    server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as halfway:
        halfway.setattr(server_process, "SERVER", (sys.executable, "-c", "raise SystemExit(1)"))
        with pytest.raises(NotForked):
            await server.start([])
    async with fork(server) as forked:
        assert await forked.exit(0) == 0


async def test_exit_codes_are_known_where_whoever_started_the_server_ignored_ends_of_children() -> None:
    server, (near, far) = ForkServer(), socket.socketpair()
    handler = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        server.begin()
    finally:
        signal.signal(signal.SIGCHLD, handler)
    with near, far:
        process = await server.start([far.fileno()])
        process.kill()
        assert await asyncio.wait_for(process.wait(), BOUND_S) == -signal.SIGKILL
    server.close()


async def test_a_process_that_the_system_does_not_start_is_an_error_of_the_system(server: ForkServer) -> None:
    async with fork(server) as first:
        pid = await first.ask("parent")
        _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (5, most))
        with pytest.raises(OSError, match="Too many open files"):
            await server.start([0, 1, 2])
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (100, most))
        async with fork(server) as second:
            assert await second.exit(0) == 0


async def test_the_server_ends_with_its_line_and_its_processes_live_on(server: ForkServer) -> None:
    async with fork(server) as first:
        pid = await first.ask("parent")
        server.close()
        assert not is_running(pid)
        assert await first.ask("descriptors") == 5


def test_a_process_is_not_watched_once_its_loop_is_closed() -> None:
    """A supervisor that could not start closes its server last of all, with shards that have not ended yet."""

    async def forked() -> ForkedProcess:
        return ForkedProcess(os.getpid(), os.pidfd_open(os.getpid()))

    process = asyncio.run(forked())
    process.watch()
    process.note_end(None)
