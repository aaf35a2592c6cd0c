"""Servers that answer as a test's script says: one of grpcio's with any status, one with any bytes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from tests import frames
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest

UNAVAILABLE, ABORTED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED


class Scripted(grpc.GenericRpcHandler):
    """Answers each call of any unary method with the next of `steps`: a status, seconds to wait, or an answer; or what
    returns one of these when the call has come."""

    def __init__(self) -> None:
        self.steps: list[Any] = []
        self.trailers: tuple[tuple[str, str], ...] = ()
        self.seen: list[dict[str, Any]] = []
        self.cancelled = 0

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if "Topology" in handler_call_details.method:
            return None
        return grpc.unary_unary_rpc_method_handler(
            self.answer, EchoRequest.FromString, lambda reply: reply.SerializeToString()
        )

    async def answer(self, request: EchoRequest, context: Any) -> EchoReply:
        number = len(self.seen)
        self.seen.append(dict(context.invocation_metadata()))
        step = self.steps.pop(0) if self.steps else "done"
        if callable(step):
            step = step()
        if isinstance(step, grpc.StatusCode):
            await context.abort(step, "as the test says", self.trailers)
        if isinstance(step, float):
            try:
                await asyncio.sleep(step)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return EchoReply(text=f"{number}")


class ScriptedFrames:
    """Answers each call, once all of it has come, by the bytes that `answer` makes of its stream. Where `hangs_up`, it
    closes the connection then."""

    def __init__(self) -> None:
        self.answer: Callable[[int], bytes] = lambda stream: b""
        self.hangs_up = False
        self.after_s = 0.0
        """How long after a call its answer is sent, by a timer as that of a server's deadline."""
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        writer.write(frames.settings())
        await reader.readexactly(len(frames.PREFACE))
        async for kind, flags, stream, payload in frames.frames(reader):
            if kind == frames.SETTINGS and not flags & frames.ACK:
                writer.write(frames.frame(frames.SETTINGS, flags=frames.ACK))
            elif kind == frames.PING and not flags & frames.ACK:
                writer.write(frames.frame(frames.PING, payload, flags=frames.ACK))
            elif kind in (frames.DATA, frames.HEADERS) and flags & frames.END_STREAM:
                if self.after_s:
                    asyncio.get_running_loop().call_later(self.after_s, writer.write, self.answer(stream))
                    continue
                writer.write(self.answer(stream))
                if self.hangs_up:
                    break
        writer.close()


class GoingAwayOnce:
    """Looks at no call of its first connection, and says so by a GOAWAY. It greets the next once it `may_go_on`, and
    then takes calls without an answer."""

    def __init__(self) -> None:
        self.is_asked_again = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.messages: asyncio.Queue[bytes] = asyncio.Queue()
        """The DATA of calls that it has taken."""
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        is_first = len(self.writers) == 1
        if not is_first:
            self.is_asked_again.set()
            await self.may_go_on.wait()
        writer.write(frames.settings())
        await reader.readexactly(len(frames.PREFACE))
        async for kind, _, _, payload in frames.frames(reader):
            if is_first and kind == frames.HEADERS:
                writer.write(frames.frame(frames.GOAWAY, frames.number(0) + frames.number(0)))
            elif not is_first and kind == frames.DATA:
                self.messages.put_nowait(payload)
        writer.close()


@asynccontextmanager
async def going_away_once() -> AsyncIterator[tuple[str, GoingAwayOnce]]:
    """Such a server; its address."""
    going_away = GoingAwayOnce()
    async with _serving(going_away) as address:
        yield address, going_away


@asynccontextmanager
async def scripted_frames() -> AsyncIterator[tuple[str, ScriptedFrames]]:
    """A server of frames; its address."""
    scripted = ScriptedFrames()
    async with _serving(scripted) as address:
        yield address, scripted


@asynccontextmanager
async def _serving(scripted: ScriptedFrames | GoingAwayOnce) -> AsyncIterator[str]:
    server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0)
    try:
        yield "{}:{}".format(*server.sockets[0].getsockname())
    finally:
        # Not `async with server`: from CPython 3.13 on it waits for the clients, of which grpcio's linger.
        server.close()
        for writer in scripted.writers:
            writer.close()
