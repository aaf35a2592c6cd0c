"""The supervisor's end of the fork server (`onelane.shard.fork_server`), which starts the processes of shards.

Promises: a server that forks no more (its files have changed, it was killed, it does not answer) is replaced by a new
one; a shard outlives its server. A request is answered within `FORK_ANSWER_S`; where no process can be forked, the
shard is to be started in a fresh interpreter.
"""

import asyncio
import contextlib
import errno
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import anyio

from onelane.shard.fork_server import MAX_PACKET, ForkAnswer
from onelane.supervisor import server_process
from onelane.supervisor.server_process import ServerProcess

_T = TypeVar("_T")
log = logging.getLogger("onelane.supervisor")
FORK_ANSWER_S = 20.0
"""How long the server may take to answer, at first with its imports."""


class ForkedProcess:
    """A process that the server has forked, as `anyio.abc.Process` has it."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._pidfd = pidfd
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()

    async def wait(self) -> int | None:
        """Its exit code, once it has ended; None where that is not known: the server ended before it."""
        await asyncio.shield(self._ended)
        return self.returncode

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """Raises:
        ProcessLookupError: it has ended.
        """
        if not self._ended.done():
            signal.pidfd_send_signal(self._pidfd, number)

    def note_end(self, code: int | None) -> None:
        if not self._ended.done():
            self.returncode = code
            self._ended.set_result(None)
            os.close(self._pidfd)

    def watch(self) -> None:
        """Note the end by the process itself: its server is gone. Nobody waits any more where the loop is closed."""
        if not self._ended.done() and not self._loop.is_closed():
            self._loop.add_reader(self._pidfd, self._seen_ended)

    def _seen_ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self.note_end(None)


class NotForked(Exception):
    """No process of this server: start a fresh interpreter. The descriptors may be those of a process that ends as soon
    as they are closed here."""


class ForkServer:
    """See the module. Its methods are called by one launch at a time."""

    def __init__(self) -> None:
        self._server: _Server | None = None
        self._is_ready = self._is_unfit = False
        self._former: list[_Server] = []

    def begin(self) -> None:
        """Start the server now, unless the command line has, so that its imports are behind it at the first launch.

        Raises:
            OSError: see `Launcher.launch`.
        """
        self._former = [server for server in self._former if not server.has_ended()]
        started = server_process.take_early() or server_process.start(os.environ)
        self._server, self._is_ready = _Server(started), False

    async def start(self, descriptors: Sequence[int]) -> ForkedProcess:
        """A process that has copies of these descriptors.

        Raises:
            NotForked, OSError: see `Launcher.launch`.
        """
        while True:
            server = await self._ready()
            answer = await self._ask(server.fork(descriptors))
            if isinstance(answer, ForkedProcess):
                return answer
            if "errno" in answer:
                raise OSError(answer["errno"], os.strerror(answer["errno"]), sys.executable)
            self._give_up()
            if "stale" not in answer:
                raise NotForked
            log.info("supervisor.fork_server_renewed changed=%s", answer["stale"])

    async def _ready(self) -> "_Server":
        """The server, which has said that it is ready."""
        if self._is_unfit:
            raise NotForked
        if self._server is not None and (self._server.is_gone or self._server.environment != dict(os.environ)):
            self._give_up()
        if self._server is None:
            self.begin()
        server = self._server
        assert server is not None
        if not self._is_ready:
            answer = await self._ask(server.greeting())
            self._is_ready = "ready" in answer
            if not self._is_ready:
                # One that has only ended, as where an upgrade had replaced half of the files, says nothing of the next.
                self._is_unfit = "unfit" in answer
                self._give_up()
                log.warning("supervisor.no_fork_server reason=%s", answer.get("unfit", "it has ended"))
                raise NotForked
        return server

    async def _ask(self, answer: Coroutine[Any, Any, _T]) -> _T:
        try:
            with anyio.fail_after(FORK_ANSWER_S):
                return await answer
        except TimeoutError:
            if self._server is not None:
                self._server.process.kill()
            log.warning("supervisor.fork_server_killed it has not answered in %g s", FORK_ANSWER_S)
            self._give_up()
            raise NotForked from None
        except asyncio.CancelledError:
            # Its answer to this request would be taken for that to the next one.
            self._give_up()
            raise

    def _give_up(self) -> None:
        """Have this server fork no more; it stays until its shards have ended."""
        if self._server is not None:
            self._server.retire()
            self._former.append(self._server)
        self._server = None

    def close(self) -> None:
        """Let the server end; shards live on."""
        self._give_up()
        for server in self._former:
            server.close()
            server.process.wait()


class _Server:
    """One process of the server."""

    def __init__(self, started: ServerProcess) -> None:
        self.process = started.process
        self.environment = started.environment
        self._line = started.line
        self._processes: dict[int, ForkedProcess] = {}
        self._answers: asyncio.Queue[ForkAnswer | ForkedProcess] = asyncio.Queue()
        self._is_retired = False

    async def greeting(self) -> ForkAnswer:
        """Its first packet; {} where it has ended."""
        asyncio.get_running_loop().add_reader(self._line.fileno(), self._read)
        answer = await self._answers.get()
        assert not isinstance(answer, ForkedProcess)
        return answer

    async def fork(self, descriptors: Sequence[int]) -> ForkAnswer | ForkedProcess:
        """A new process that has copies of these descriptors, or why there is none; {} where the server has ended."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self._line, [str(len(descriptors)).encode()], descriptors)
        return await self._answers.get()

    def retire(self) -> None:
        """Let it end with the last of its shards."""
        self._is_retired = True
        self._close_if_done()

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def is_gone(self) -> bool:
        """It has ended, or is about to."""
        return self._line.fileno() < 0

    def close(self) -> None:
        """Let it end now; its shards are watched without it."""
        if self.is_gone:
            return
        with contextlib.suppress(RuntimeError):
            # Without a loop it was never asked.
            asyncio.get_running_loop().remove_reader(self._line.fileno())
        self._line.close()
        self._answers.put_nowait({})
        for process in self._processes.values():
            process.watch()

    def _close_if_done(self) -> None:
        if self._is_retired and not self._processes:
            self.close()

    def _read(self) -> None:
        """Take the packets that have come."""
        while not self.is_gone:
            try:
                packet, received, _, _ = socket.recv_fds(self._line, MAX_PACKET, 1, socket.MSG_CMSG_CLOEXEC)
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionResetError:
                packet, received = b"", []
            if packet:
                self._take(json.loads(packet), received)
            else:
                self.close()

    def _take(self, answer: ForkAnswer, received: Sequence[int]) -> None:
        if "ended" in answer:
            if (process := self._processes.pop(answer["ended"], None)) is not None:
                process.note_end(answer["code"])
            self._close_if_done()
        elif "pid" not in answer:
            self._answers.put_nowait(answer)
        elif not received:
            # The limit of this process: the system drops what it cannot hand over. It ends with its control line.
            self._answers.put_nowait({"errno": errno.EMFILE})
        else:
            forked = self._processes[answer["pid"]] = ForkedProcess(answer["pid"], received[0])
            self._answers.put_nowait(forked)
