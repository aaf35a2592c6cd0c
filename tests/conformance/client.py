"""The client under test, as connectconformance starts it: `python -m tests.conformance.client dial|connect [ready]`.

It takes ClientCompatRequests until its input ends, makes the call of each, and answers what came back.
"""

import asyncio
import contextlib
import functools
import ssl
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import onelane
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import status_pb2

from tests.conformance.headers import read_message, to_headers, to_metadata, write_message
from tests.conformance.v1 import service_pb2 as m
from tests.conformance.v1 import service_pb2_grpc
from tests.conformance.v1.compat_pb2 import (
    ClientCompatRequest,
    ClientCompatResponse,
    ClientErrorResult,
    ClientResponseResult,
)

AT_ONCE = 16
READY_S = 20.0
COMPRESSIONS = {
    m.COMPRESSION_GZIP: grpc.Compression.Gzip,
    m.COMPRESSION_DEFLATE: grpc.Compression.Deflate,
}
DETAILS = "grpc-status-details-bin"
CHANNELS: dict[str, Callable[..., grpc.aio.Channel]] = {
    "dial": onelane.dial,
    # Its default is a deadline for each unary call.
    "connect": functools.partial(onelane.connect, deadline_s=None),
}
REQUESTS: dict[str, type[Message]] = {
    "Unary": m.UnaryRequest,
    "IdempotentUnary": m.IdempotentUnaryRequest,
    "Unimplemented": m.UnimplementedRequest,
    "ServerStream": m.ServerStreamRequest,
    "ClientStream": m.ClientStreamRequest,
    "BidiStream": m.BidiStreamRequest,
}


@dataclass
class Outcome:
    """What came back of one call."""

    payloads: list[m.ConformancePayload] = field(default_factory=list)
    unsent: int = 0

    def took(self, response: Any) -> None:
        if hasattr(response, "payload"):
            self.payloads.append(response.payload)


class Case:
    """One call, made as its request says."""

    def __init__(self, asked: ClientCompatRequest, stub: "service_pb2_grpc.ConformanceServiceAsyncStub") -> None:
        self._asked = asked
        self._method: Any = getattr(stub, asked.method)
        self._requests = [self._unpacked(request) for request in asked.request_messages]
        self._cancel = (
            asked.cancel.WhichOneof("cancel_timing") or "after_close_send_ms" if asked.HasField("cancel") else ""
        )
        self._outcome = Outcome()

    def _unpacked(self, envelope: AnyMessage) -> Message:
        return REQUESTS[self._asked.method].FromString(envelope.value)

    async def run(self) -> ClientResponseResult:
        streaming_requests = self._asked.method in ("ClientStream", "BidiStream")
        make = self._upload if streaming_requests else self._begin
        call = make()
        # How a call ends is asked of the call itself.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            if streaming_requests:
                await self._send(call)
            await self._close(call)
            await self._receive(call)
        return await self._result(call)

    def _begin(self) -> Any:
        return self._method(self._requests[0], **self._options())

    def _upload(self) -> Any:
        return self._method(**self._options())

    def _options(self) -> dict[str, Any]:
        return {
            "metadata": to_metadata(self._asked.request_headers),
            "timeout": self._asked.timeout_ms / 1000 if self._asked.HasField("timeout_ms") else None,
            "compression": COMPRESSIONS.get(self._asked.compression),
        }

    async def _send(self, call: Any) -> None:
        full_duplex = self._asked.stream_type == m.STREAM_TYPE_FULL_DUPLEX_BIDI_STREAM
        for number, request in enumerate(self._requests):
            await asyncio.sleep(self._asked.request_delay_ms / 1000)
            try:
                await call.write(request)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                self._outcome.unsent = len(self._requests) - number
                return
            if full_duplex and not await self._receive_next(call):
                self._outcome.unsent = len(self._requests) - number - 1
                return

    async def _close(self, call: Any) -> None:
        """End the requests, unless the call is to be cancelled instead; the cancellation that comes after that."""
        if self._cancel == "before_close_send":
            call.cancel()
        elif hasattr(call, "done_writing"):
            with contextlib.suppress(asyncio.InvalidStateError):
                await call.done_writing()
        if self._cancel == "after_close_send_ms":
            await asyncio.sleep(self._asked.cancel.after_close_send_ms / 1000)
            call.cancel()

    async def _receive(self, call: Any) -> None:
        if not hasattr(call, "read"):
            self._outcome.took(await call)
            return
        while await self._receive_next(call):
            pass

    async def _receive_next(self, call: Any) -> bool:
        response = await call.read()
        if response is grpc.aio.EOF:
            return False
        self._outcome.took(response)
        if (
            self._cancel == "after_num_responses"
            and len(self._outcome.payloads) == self._asked.cancel.after_num_responses
        ):
            call.cancel()
        return True

    async def _result(self, call: Any) -> ClientResponseResult:
        initial, trailing = await call.initial_metadata(), await call.trailing_metadata()
        result = ClientResponseResult(
            response_headers=to_headers(initial or ()),
            response_trailers=to_headers(trailing or ()),
            payloads=self._outcome.payloads,
            num_unsent_requests=self._outcome.unsent,
        )
        code = await call.code()
        if code is not grpc.StatusCode.OK:
            details = status_pb2.Status.FromString(dict(trailing or ()).get(DETAILS, b"")).details
            result.error.CopyFrom(m.Error(code=code.value[0], message=await call.details(), details=details))
        return result


class Client:
    """Makes the calls, over one channel for each server and its settings."""

    def __init__(self, channel: Callable[..., grpc.aio.Channel], folder: Path, *, waits_ready: bool) -> None:
        """waits_ready: no call is made before its channel knows the shards."""
        self._make_channel = channel
        self._waits_ready = waits_ready
        self._folder = folder
        self._channels: dict[tuple[Any, ...], grpc.aio.Channel] = {}
        self._places = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as calls:
            while asked := await asyncio.to_thread(read_message, sys.stdin.buffer, ClientCompatRequest):
                await self._places.acquire()
                calls.create_task(self._answer(asked))
        for channel in self._channels.values():
            await channel.close()

    async def _answer(self, asked: ClientCompatRequest) -> None:
        answer = ClientCompatResponse(test_name=asked.test_name)
        try:
            channel = self._channel(asked)
            if self._waits_ready:
                await asyncio.wait_for(channel.channel_ready(), READY_S)
            stub: Any = service_pb2_grpc.ConformanceServiceStub(channel)
            answer.response.CopyFrom(await Case(asked, stub).run())
        except Exception as error:
            answer.error.CopyFrom(ClientErrorResult(message=repr(error)))
        finally:
            self._places.release()
        write_message(sys.stdout.buffer, answer)

    def _channel(self, asked: ClientCompatRequest) -> grpc.aio.Channel:
        settings = (
            asked.host,
            asked.port,
            asked.server_tls_cert,
            asked.client_tls_creds.cert,
            asked.message_receive_limit,
        )
        channel = self._channels.get(settings)
        if channel is None:
            dialling = onelane.Dialling(
                tls=self._tls(asked), max_message_bytes=asked.message_receive_limit or 2**31 - 1
            )
            channel = self._make_channel(f"{asked.host}:{asked.port}", dialling=dialling)
            self._channels[settings] = channel
        return channel

    def _tls(self, asked: ClientCompatRequest) -> ssl.SSLContext | None:
        if not asked.server_tls_cert:
            return None
        files = {"ca": asked.server_tls_cert, "cert": asked.client_tls_creds.cert, "key": asked.client_tls_creds.key}
        for name, pem in files.items():
            (self._folder / name).write_bytes(pem)
        return onelane.client_context(**{name: self._folder / name for name, pem in files.items() if pem})


async def main(channel: Callable[..., grpc.aio.Channel], *options: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        await Client(channel, Path(folder), waits_ready="ready" in options).run()


if __name__ == "__main__":
    asyncio.run(main(CHANNELS[sys.argv[1]], *sys.argv[2:]))
