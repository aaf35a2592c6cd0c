"""Call credentials of grpcio on our channels: each case on grpcio's channel and on ours, both on TLS."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest
from onelane.client.options import Dialling

from tests.bounds import BOUND_S
from tests.follow.scripted import HOLD, Ends, scripted_streams
from tests.follow.v1.follow_pb2 import FollowRequest
from tests.follow.v1.follow_pb2_grpc import FollowStub
from tests.servers import Files, Handlers, stock_secure

Answered = Callable[[Any, Any], None]


class Plugin(grpc.AuthMetadataPlugin):
    """Answers as `answer` does. asked: what it was asked for, and on which thread."""

    def __init__(self, answer: Callable[[Answered], None]) -> None:
        self.answer = answer
        self.asked: list[tuple[str, str]] = []
        self.threads: set[int] = set()

    def __call__(self, context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        self.asked.append((context.service_url.rpartition(":")[2].partition("/")[2], context.method_name))
        self.threads.add(threading.get_ident())
        self.answer(callback)


def raises(callback: Answered) -> None:
    raise ValueError("no token today")


def on_another_thread(callback: Answered) -> None:
    threading.Thread(target=callback, args=((("x-later", "1"),), None)).start()


def plugin(answer: Callable[[Answered], None]) -> grpc.CallCredentials:
    return grpc.metadata_call_credentials(Plugin(answer))


TOKEN = grpc.access_token_call_credentials("token")
CASES = {
    "an access token": TOKEN,
    "two of them": grpc.composite_call_credentials(TOKEN, plugin(lambda answered: answered((("x-b", "2"),), None))),
    "a plugin that raises": plugin(raises),
    "a plugin that fails": plugin(lambda answered: answered((), RuntimeError("expired"))),
    "a plugin that answers on another thread": plugin(on_another_thread),
    "a plugin that adds nothing": plugin(lambda answered: answered((), None)),
    "a plugin that never answers": plugin(lambda answered: None),
}


async def sent(request: bytes, context: Any) -> bytes:
    pairs = [pair for pair in context.invocation_metadata() if pair[0].startswith(("x-", "auth"))]
    return repr(sorted(pairs)).encode()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@asynccontextmanager
async def secure(files: Files) -> AsyncIterator[str]:
    """The address of a grpc.aio server that answers by the metadata it was sent."""
    server = grpc.aio.server(handlers=[Handlers(Sent=grpc.unary_unary_rpc_method_handler(sent))])
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([files.pair("server")]))
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def channels(address: str, files: Files) -> dict[str, Any]:
    dialling = Dialling(tls=files.client())
    return {
        "grpcio": stock_secure(address, files),
        "dial": onelane.dial(address, dialling=dialling),
        "connect": onelane.connect(address, dialling=dialling),
    }


async def outcome(channel: Any, credentials: grpc.CallCredentials, *, deadline_s: float = 20.0) -> Any:
    send = channel.unary_unary("/t.T/Sent")
    call = send(b"", credentials=credentials, metadata=(("x-own", "1"),), timeout=deadline_s)
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return error.code(), str(error.details()).removeprefix(f"{call_name(channel)}: ")


def call_name(channel: Any) -> str:
    return channel.peer.name if isinstance(channel, onelane.Channel) else ""


@pytest.mark.parametrize("name", CASES)
async def test_call_credentials_act_as_with_grpcio(files: Files, name: str) -> None:
    async with secure(files) as address:
        opened = channels(address, files)
        # The others have time for a handshake on a busy machine.
        deadline_s = 0.5 if name == "a plugin that never answers" else 20.0
        outcomes = {
            each: await outcome(channel, CASES[name], deadline_s=deadline_s) for each, channel in opened.items()
        }
        assert outcomes == dict.fromkeys(opened, outcomes["grpcio"])
        for channel in opened.values():
            await channel.close()


async def test_a_plugin_is_asked_for_the_service_off_the_loop(files: Files) -> None:
    asked = Plugin(lambda answered: answered((), None))
    async with secure(files) as address, onelane.dial(address, dialling=Dialling(tls=files.client())) as channel:
        await channel.unary_unary("/t.T/Sent")(b"", credentials=grpc.metadata_call_credentials(asked), timeout=BOUND_S)
    assert asked.asked == [("t.T", "Sent")]
    assert threading.get_ident() not in asked.threads


async def test_metadata_of_a_plugin_that_cannot_be_sent_fails_its_call_alone(files: Files) -> None:
    odd = plugin(lambda answered: answered((("X Y", "z"),), None))
    async with secure(files) as address, onelane.dial(address, dialling=Dialling(tls=files.client())) as channel:
        code, details = await outcome(channel, odd)
        assert (code, details[:16]) == (grpc.StatusCode.UNAVAILABLE, "Illegal metadata")
        assert b"Bearer token" in await outcome(channel, TOKEN)


async def test_a_call_that_waits_for_its_credentials_ends_with_its_channel(files: Files) -> None:
    async with secure(files) as address:
        channel = onelane.dial(address, dialling=Dialling(tls=files.client()))
        call = channel.unary_unary("/t.T/Sent")(b"", credentials=CASES["a plugin that never answers"])
        await channel.close()
        assert await call.code() is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize("which", ["grpcio", "dial", "connect"])
async def test_a_closed_channel_takes_no_call_with_credentials_either(files: Files, which: str) -> None:
    all_channels = channels("127.0.0.1:1", files)
    # Also the others: one that nobody closes goes on to connect, in the loop of the tests that follow.
    for channel in all_channels.values():
        await channel.close()
    channel = all_channels[which]
    with pytest.raises(grpc.aio.UsageError, match="Channel is closed"):
        channel.unary_unary("/t.T/Sent")(b"", credentials=TOKEN)


async def test_a_call_that_ends_before_its_plugin_has_answered_waits_for_it_no_longer(files: Files) -> None:
    """Else each of them would leave a task, for as long as the channel is open."""
    async with onelane.dial("127.0.0.1:1", dialling=Dialling(tls=files.client())) as channel:
        call = channel.unary_unary("/t.T/Sent")(b"", credentials=CASES["a plugin that never answers"], timeout=0.1)
        preparing = list(channel.subchannel._preparing)
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait(preparing, timeout=BOUND_S)
        assert [task.cancelled() for task in preparing] == [True]


async def test_credentials_without_a_plugin_are_refused(files: Files) -> None:
    async with onelane.dial("127.0.0.1:1", dialling=Dialling(tls=files.client())) as channel:
        with pytest.raises(TypeError, match="only those with a metadata plugin"):
            channel.unary_unary("/t.T/Sent")(b"", credentials=grpc.CallCredentials(object()))


async def test_a_stream_that_is_opened_again_asks_its_credentials_again(files: Files) -> None:
    """A token may have expired by then."""
    tokens = iter("abc")
    credentials = plugin(lambda answered: answered((("x-token", next(tokens)),), None))
    async with scripted_streams(tls=grpc.ssl_server_credentials([files.pair("server")])) as (scripted, address):
        scripted.scripts = [["first", Ends(7)], ["second", HOLD]]
        channel = onelane.connect(address, dialling=Dialling(tls=files.client()))
        call: Any = FollowStub(channel).Watch(FollowRequest(key="k"), credentials=credentials, timeout=BOUND_S)
        assert [(await call.read()).text for _ in range(2)] == ["first", "second"]
        assert [seen["x-token"] for seen in scripted.seen] == ["a", "b"]
        await channel.close()
