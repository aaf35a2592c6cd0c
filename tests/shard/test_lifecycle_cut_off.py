"""Calls that a drain cuts off: UNAVAILABLE, of every kind, at home, forwarded, and waiting for their turn."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.client.channel import dial

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import ECHO, eventually, running

APP = f'[apps.echo]\n{ECHO}\nlisten = "127.0.0.1:0"\nshards = 2\ndrain_s = 0.1\nkeepalive_s = 60\n'


async def requests(key: str, until: asyncio.Event) -> AsyncIterator[EchoRequest]:
    yield EchoRequest(key=key)
    # Not for ever: grpcio leaves the task that reads this behind, and it would be destroyed while pending.
    await until.wait()


async def keys_by_owner(stub: Any) -> dict[str, str]:
    """A key of each shard."""
    owners: dict[str, str] = {}
    for number in range(50):
        reply = await stub.Unary(EchoRequest(key=f"{number}"), timeout=BOUND_S)
        owners.setdefault(reply.shard, f"{number}")
    return owners


def calls_of(stub: Any, key: str) -> dict[str, Any]:
    """Calls of one key that end with the shard alone, with one request each; two of them wait for its turn."""
    forever = EchoRequest(key=key, order="forever", times=1)
    return {
        "unary": stub.Misbehave(EchoRequest(key=key, order=f"wait {key}")),
        "second in turn": stub.Misbehave(EchoRequest(key=key, order=f"wait {key}")),
        "third in turn": stub.Misbehave(EchoRequest(key=key, order=f"wait {key}"), timeout=60),
        "without turns": stub.Hold(EchoRequest(key=key)),
        "any": stub.Who(EchoRequest(order="sleep")),
        "download": stub.Download(forever),
    }


def uploads_of(stub: Any, key: str, until: asyncio.Event) -> dict[str, Any]:
    """Calls of one key that end with the shard alone, whose client streams."""
    return {
        "upload": stub.Upload(requests(key, until)),
        "chat": stub.Chat(requests(key, until)),
        "plain upload": stub.PlainUpload(requests(key, until)),
        "plain chat": stub.PlainChat(requests(key, until)),
    }


@pytest.mark.parametrize("listener", ["native", "grpcio"])
async def test_a_call_that_a_drain_cuts_off_is_unavailable(listener: str, tmp_path: Path) -> None:
    with running(tmp_path, f'{APP}listener = "{listener}"\n') as app:
        address = app.listen["echo"]
        async with dial(address) as channel, grpc.aio.insecure_channel(address) as stock, asyncio.timeout(60):
            stubs = {"ours": echo_pb2_grpc.EchoStub(channel), "grpcio": echo_pb2_grpc.EchoStub(stock)}
            keys = await keys_by_owner(stubs["ours"])
            before, ended = app.in_flight(), asyncio.Event()
            calls = {
                f"{client} {shard} {kind}": call
                for client, stub in stubs.items()
                for shard, key in keys.items()
                for kind, call in (calls_of(stub, key) | uploads_of(stub, key, ended)).items()
            }
            for name, call in calls.items():
                if name.endswith(("download", "chat")):
                    await call.read()
            await eventually(lambda: app.in_flight() >= before + len(calls))
            app.process.terminate()
            codes = {name: (await call.code()).name for name, call in calls.items()}
            ended.set()
    assert codes == dict.fromkeys(calls, "UNAVAILABLE")
