"""Calls with an `idempotency-key`, each with an id of its own, which h2load cannot send."""

import asyncio
from collections.abc import Sequence

import grpc.aio

from tests.bench.load import cpu_s
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.echo.v1.echo_pb2_grpc import EchoStub

AT_ONCE = 64
SHAPE = f"1x{AT_ONCE}"
KEYS = 8


async def cost_us(address: str, pids: Sequence[int], *, prefix: str, calls: int) -> float:
    """CPU of these processes for each of the calls, whose ids are `prefix` and a number: a second time with the same
    prefix they are repeats."""
    numbers = iter(range(calls))
    async with grpc.aio.insecure_channel(address) as channel:
        stub = EchoStub(channel)

        async def one_after_the_other() -> None:
            for number in numbers:
                metadata = (("idempotency-key", f"{prefix}{number}"),)
                await stub.Plain(EchoRequest(key=f"key-{number % KEYS}"), metadata=metadata, timeout=30)

        await channel.channel_ready()
        before = cpu_s(pids)
        await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))
        return (cpu_s(pids) - before) / calls * 1e6
