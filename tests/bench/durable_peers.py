"""What people write today to keep a counter: grpc.aio, and one commit for each call; and the service behind Restate."""

import asyncio
import os
import socket
from importlib import import_module
from typing import Any

import grpc.aio

from tests.bench import raw
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest

DATABASE = "BENCH_DATABASE"
"""Variable with the file of SQLite, or the address of PostgreSQL."""
POOL = 10
"""Connections to PostgreSQL, asyncpg's usual number."""
ADD = "INSERT INTO count VALUES ({}, 1) ON CONFLICT (key) DO UPDATE SET seen = count.seen + 1 RETURNING seen"
TABLE = "CREATE TABLE IF NOT EXISTS count (key TEXT PRIMARY KEY, seen BIGINT NOT NULL)"


class OverSqlite(echo_pb2_grpc.EchoServicer):
    """One connection, as SQLite has one writer; its transactions follow each other."""

    def __init__(self, database: Any) -> None:
        self.database = database
        self.turn = asyncio.Lock()

    async def Plain(self, request: EchoRequest, context: Any) -> EchoReply:
        async with self.turn:
            async with self.database.execute(ADD.format("?"), (request.key,)) as cursor:
                (seen,) = await cursor.fetchone()
            await self.database.commit()
        return EchoReply(seen=seen)


class OverPostgres(echo_pb2_grpc.EchoServicer):
    def __init__(self, pool: Any) -> None:
        self.pool = pool

    async def Plain(self, request: EchoRequest, context: Any) -> EchoReply:
        return EchoReply(seen=await self.pool.fetchval(ADD.format("$1"), request.key))


async def over_sqlite() -> tuple[int, Any]:
    database = await import_module("aiosqlite").connect(os.environ[DATABASE])
    await database.execute("PRAGMA journal_mode=WAL")
    await database.execute("PRAGMA synchronous=FULL")
    await database.execute(TABLE)
    return await _serve(OverSqlite(database))  # type: ignore[abstract]


async def over_postgres() -> tuple[int, Any]:
    pool = await import_module("asyncpg").create_pool(os.environ[DATABASE], min_size=POOL, max_size=POOL)
    await pool.execute(TABLE)
    return await _serve(OverPostgres(pool))  # type: ignore[abstract]


async def behind_restate() -> tuple[int, Any]:
    """A virtual object for each key, whose state and calls Restate keeps."""
    restate, uvicorn = import_module("restate"), import_module("uvicorn")
    counter = restate.VirtualObject("Counter")

    @counter.handler()  # type: ignore[untyped-decorator]
    async def add(ctx: Any) -> int:
        count: int = (await ctx.get("count") or 0) + 1
        ctx.set("count", count)
        return count

    sock = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(restate.app([counter]), log_level="error"))
    return sock.getsockname()[1], asyncio.create_task(server.serve(sockets=[sock]))


async def _serve(servicer: echo_pb2_grpc.EchoServicer) -> tuple[int, Any]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    raw.register(server, servicer)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return port, (server, servicer)
