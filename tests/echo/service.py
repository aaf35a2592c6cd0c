"""The service that the tests run: a method of each shape, and one that misbehaves to order."""

import asyncio
import ctypes
import functools
import os
import signal
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import onelane
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest

Context = grpc.aio.ServicerContext[Any, Any]


class Echo(echo_pb2_grpc.EchoServicer):
    def __init__(self, shard: onelane.Shard) -> None:
        self.shard = shard
        self.seen = shard.keyed("seen", int)
        self.held: dict[str, asyncio.Event] = {}
        self.added = 0
        self.configured: list[str] = []
        shard.on_config(lambda old, new: self.configured.append(f"{old!r}->{new!r}"))
        self.heard: dict[str, list[str]] = {}
        self.hears = asyncio.Event()
        self.lagging: dict[str, Any] = {}
        self.subscriptions: list[Any] = []
        self.began: list[str] = []
        self.db = shard.offload(lambda: sqlite3.connect(":memory:"), name="db", capacity=4)

    def reply(self, request: EchoRequest) -> EchoReply:
        self.seen[request.key] = self.seen.get(request.key, 0) + 1
        return EchoReply(text=request.text, shard=self.shard.name, seen=self.seen[request.key])

    async def Unary(self, request: EchoRequest, context: Context) -> EchoReply:
        return self.reply(request)

    async def Download(self, request: EchoRequest, context: Context) -> AsyncIterator[EchoReply]:
        if request.order == "gzip":
            context.set_compression(grpc.Compression.Gzip)
        for _ in range(request.times):
            yield self.reply(request)
        if request.order == "forever":
            await asyncio.Event().wait()

    async def Upload(self, request_iterator: AsyncIterator[EchoRequest], context: Context) -> EchoReply:
        texts = []
        async for request in request_iterator:
            if request.order == "abort":
                await self._abort("", context)
            texts.append(request.text)
            self.reply(request)
        return EchoReply(text=",".join(texts), shard=self.shard.name)

    async def Chat(self, request_iterator: AsyncIterator[EchoRequest], context: Context) -> AsyncIterator[EchoReply]:
        async for request in request_iterator:
            if request.order == "turn":
                async with self.shard.turn(request.key):
                    await self._add("5", context)
            yield self.reply(request)

    def Plain(self, request: EchoRequest, context: grpc.ServicerContext) -> EchoReply:
        if request.order == "abort":
            context.abort(grpc.StatusCode.NOT_FOUND, "plain abort")
        return self.reply(request)

    def PlainUpload(self, request_iterator: Iterator[EchoRequest], context: grpc.ServicerContext) -> EchoReply:
        texts = [self.reply(request).text for request in request_iterator]
        return EchoReply(text=",".join(texts), shard=self.shard.name)

    def PlainChat(self, request_iterator: Iterator[EchoRequest], context: grpc.ServicerContext) -> Iterator[EchoReply]:
        for request in request_iterator:
            yield self.reply(request)

    async def Misbehave(self, request: EchoRequest, context: Context) -> EchoReply:
        order, _, rest = request.order.partition(" ")
        await getattr(self, f"_{order}")(rest, context)
        text = request.order
        if text.endswith("identity"):
            text = str(dict(context.trailing_metadata() or ())["x-identity"])
        return EchoReply(text=text, shard=self.shard.name)

    async def Hold(self, request: EchoRequest, context: Context) -> EchoReply:
        held = self.held.setdefault(request.key, asyncio.Event())
        await held.wait()
        return self.reply(request)

    async def Release(self, request: EchoRequest, context: Context) -> EchoReply:
        self.held.setdefault(request.key, asyncio.Event()).set()
        return self.reply(request)

    async def Who(self, request: EchoRequest, context: Context) -> EchoReply:
        if request.order == f"fail {self.shard.index}":
            await context.abort(grpc.StatusCode.DATA_LOSS, f"{self.shard.name} was to fail")
        if request.order in ("sleep", f"sleep {self.shard.index}"):
            await asyncio.sleep(60)
        return EchoReply(shard=self.shard.name)

    async def Across(self, request: EchoRequest, context: Context) -> EchoReply:
        order, _, rest = request.order.partition(" ")
        return EchoReply(text=await getattr(self, f"_across_{order}")(rest))

    async def _across_call(self, rest: str) -> str:
        key, order = rest.split(" ", 1)
        asked = EchoRequest(key=key, order=order)
        reply = await self.shard.call(key, echo_pb2_grpc.EchoServicer.Misbehave, asked)
        return reply.shard

    async def _across_by_name(self, key: str) -> str:
        reply: EchoReply = await self.shard.call(key, "echo.v1.Echo/Unary", EchoRequest(key=key))
        return reply.shard

    async def _across_each(self, order: str) -> str:
        return await self._across_each_within(f"30 {order}")

    async def _across_each_within(self, rest: str) -> str:
        timeout_s, order = rest.split(" ", 1)
        which = echo_pb2_grpc.EchoServicer.Who
        answers = await self.shard.call_each(which, EchoRequest(order=order), timeout=float(timeout_s))
        codes = [a.error.code().name if a.error else getattr(a.reply, "shard", "") for a in answers]
        return " ".join(f"{answer.shard}={what}" for answer, what in zip(answers, codes, strict=True))

    async def _across_turn(self, key: str) -> str:
        async with self.shard.turn(key):
            return self.shard.name

    async def _across_misuse(self, which: str) -> str:
        """Call another lane as a service should not."""
        call, own = self.shard.call, echo_pb2_grpc.EchoServicer
        request, wrong = EchoRequest(key="a"), cast(Any, EchoReply())
        misuses: dict[str, Any] = {
            "unknown": lambda: call("a", "echo.v1.Echo/Nope", request),
            "streaming": lambda: call("a", "echo.v1.Echo/Upload", request),
            "empty": lambda: call("", own.Unary, EchoRequest()),
            "other_key": lambda: call("b", own.Unary, request),
            "message": lambda: call("a", own.Unary, wrong),
            "keyed_each": lambda: self.shard.call_each(own.Unary, request),
            "message_each": lambda: self.shard.call_each(own.Who, wrong),
        }
        return str(await misuses[which]())

    async def _across_publish(self, rest: str) -> str:
        topic, times, how = rest.split(" ")
        for number in range(int(times)):
            self.shard.publish(topic, EchoReply(text=f"{self.shard.name}:{number}"), at_once=how == "at_once")
        return self.shard.name

    async def _across_subscribe(self, topic: str) -> str:
        self.heard[topic] = []
        self.subscriptions.append(self.shard.subscribe(topic, EchoReply, lambda item: self._hear(topic, item)))
        return self.shard.name

    async def _across_lag(self, topic: str) -> str:
        """Subscribe, and begin to read only when asked for what was heard."""
        self.lagging[topic] = self.shard.subscribe(topic, EchoReply)
        return self.shard.name

    async def _across_read(self, topic: str) -> str:
        subscription = self.lagging.pop(topic)
        subscription.close()
        return " ".join([self._said(item) async for item in subscription])

    async def _across_heard(self, topic: str) -> str:
        return " ".join(self.heard[topic])

    async def _across_wait_heard(self, rest: str) -> str:
        """As soon as it has heard so many."""
        topic, times = rest.split(" ")
        while len(self.heard[topic]) < int(times):
            await self.hears.wait()
        return await self._across_heard(topic)

    def _hear(self, topic: str, item: Any) -> None:
        self.heard[topic].append(self._said(item))
        hears, self.hears = self.hears, asyncio.Event()
        hears.set()

    def _said(self, item: Any) -> str:
        return f"lost:{item.count}" if isinstance(item, onelane.Lost) else item.text

    # What Misbehave can be ordered to do.

    async def _abort(self, _: str, context: Context) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing: ünïcode", (("x-why", "aborted"),))

    async def _rich(self, _: str, context: Context) -> None:
        status = status_pb2.Status(code=code_pb2.FAILED_PRECONDITION, message="rich")
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.ErrorInfo(reason="BECAUSE", domain="tests"))
        status.details.append(detail)
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.set_code(grpc.StatusCode.FAILED_PRECONDITION)
        context.set_details("rich")

    async def _raise(self, text: str, context: Context) -> None:
        raise ValueError(text)

    async def _leak(self, _: str, context: Context) -> None:
        raise asyncio.CancelledError

    async def _sleep(self, seconds: str, context: Context) -> None:
        await asyncio.sleep(float(seconds))

    async def _block(self, seconds: str, context: Context) -> None:
        time.sleep(float(seconds))  # noqa: ASYNC251 - a stall is what is ordered

    async def _stall_at(self, gate: str, context: Context) -> None:
        """Stall the lane until the test lets this handler out of the gate: see tests/gate.py."""
        Path(gate).read_bytes()  # noqa: ASYNC240 - a stall is what is ordered

    async def _hold_at(self, gate: str, context: Context) -> None:
        """Wait in the gate while the lane goes on: also while its shard drains, and takes no `Release`."""
        await asyncio.to_thread(Path(gate).read_bytes)

    async def _compute(self, seconds: str, context: Context) -> None:
        """For so many seconds of this thread's CPU time."""
        until = time.thread_time() + float(seconds)
        while time.thread_time() < until:
            pass

    async def _keep(self, seconds: str, context: Context) -> None:
        """Stall in C code that does not let go of the interpreter, so that no other thread runs either."""
        ctypes.PyDLL(None).sleep(int(seconds))

    async def _wait_for_interpreter(self, numbers: str, context: Context) -> None:
        """While another thread keeps it in C code."""
        other = threading.Thread(target=lambda: sum(range(int(numbers))))
        other.start()
        while other.is_alive():
            pass

    async def _metadata(self, _: str, context: Context) -> None:
        sent = dict(context.invocation_metadata() or ())
        await context.send_initial_metadata((("x-initial", "first"),))
        packed = sent.get("x-there-bin", b"\x00\xff")
        context.set_trailing_metadata((("x-back", sent.get("x-there", "")), ("x-back-bin", packed)))

    async def _odd(self, which: str, context: Context) -> None:
        odd: Any = {"text": ("x-odd-bin", "text"), "value": ("x-odd", "line\nbreak"), "name": ("X Odd", "v")}[which]
        context.set_trailing_metadata((odd,))

    async def _remaining(self, _: str, context: Context) -> None:
        context.set_trailing_metadata((("x-remaining", str(context.time_remaining())),))

    async def _add(self, turns_of_the_loop: str, context: Context) -> None:
        """Read, wait, write: what goes wrong where two calls of one key interleave."""
        before = self.added
        for _ in range(int(turns_of_the_loop)):
            await asyncio.sleep(0)
        self.added = before + 1
        context.set_trailing_metadata((("x-added", str(self.added)),))

    async def _wait(self, key: str, context: Context) -> None:
        """Wait until somebody calls Release with `key`."""
        self.began.append(key)
        await self.held.setdefault(key, asyncio.Event()).wait()

    async def _then(self, rest: str, context: Context) -> None:
        """`_then KEY ORDER`: wait for Release of `key`, and go on with the order."""
        key, order, rest = rest.split(" ", 2)
        await self._wait(key, context)
        await getattr(self, f"_{order}")(rest, context)

    async def _identity(self, _: str, context: Context) -> None:
        identity = onelane.identity_of(context)
        seen = [identity.subject or "anonymous", ",".join(sorted(identity.roles)), identity.proven_by]
        context.set_trailing_metadata(
            (("x-identity", " ".join(filter(None, seen))), ("x-metadata", self._names_of(context)))
        )

    def _names_of(self, context: Context) -> str:
        return " ".join(str(name) for name, _ in context.invocation_metadata() or ())

    async def _config(self, _: str, context: Context) -> None:
        trailers = (("x-config", repr(self.shard.config)), ("x-followed", " ".join(self.configured)))
        context.set_trailing_metadata(trailers)

    async def _began(self, _: str, context: Context) -> None:
        context.set_trailing_metadata((("x-began", " ".join(self.began)),))

    async def _call(self, rest: str, context: Context) -> None:
        """`_call APP KEY ORDER`: order the same of another app, or of this one."""
        app, key, order = rest.split(" ", 2)
        await self.shard.stub(echo_pb2_grpc.EchoStub, to=app).Misbehave(EchoRequest(key=key, order=order))

    async def _asked(self, rest: str, context: Context) -> None:
        """`_asked APP ORDER`: order another app, and answer with the identity that it has seen."""
        app, order = rest.split(" ", 1)
        call: Any = self.shard.stub(echo_pb2_grpc.EchoStub, to=app).Misbehave(EchoRequest(key="k", order=order))
        await call
        context.set_trailing_metadata(tuple(await call.trailing_metadata()))

    async def _sibling(self, rest: str, context: Context) -> None:
        """`_sibling KEY ORDER`: order the owner of a key in this app, and answer with the identity that it has seen."""
        key, order = rest.split(" ", 1)
        reply = await self.shard.call(key, echo_pb2_grpc.EchoServicer.Misbehave, EchoRequest(key=key, order=order))
        context.set_trailing_metadata((("x-identity", reply.text),))

    async def _later(self, key: str, context: Context) -> None:
        """`_later KEY`: hold the key's turn very soon, by a timer, until somebody calls Release with `key`."""
        self.shard.later(key, 0.001, functools.partial(self._wait, key, context))

    async def _nest(self, key: str, context: Context) -> None:
        """`_nest KEY`, in a turn of the key: enter it again, and set a timer."""
        async with self.shard.turn(key):
            self.shard.later(key, 60.0, context.time_remaining)

    async def _die(self, _: str, context: Context) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async def _database(self, work: str, context: Context) -> None:
        jobs = {"boom": lambda c: c.execute("nonsense"), "slow": lambda c: time.sleep(0.3), "": lambda c: 1}
        await self.db.run(jobs[work])
