"""Closes the connections that come to drained shards, so that clients go elsewhere.

Else they would wait in the queue of the listening socket, which is there for restarts.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence

import anyio

from onelane.supervisor.shard_state import ShardState
from onelane.supervisor.supervised_shard import SupervisedShard

TURN_AWAY_PAUSE_S = 0.1
"""After a connection to a drained shard could not be accepted."""


async def while_drained(
    shard: SupervisedShard, shards: Sequence[SupervisedShard], *, is_stopping: Callable[[], bool]
) -> None:
    """Close each connection to the own address of `shard` while it is drained; and each to the shared address while all
    of `shards` that accept from its socket are drained."""
    if not shard.sockets or shard.state is not ShardState.DRAINED:
        return
    shared, own, _ = shard.sockets
    acceptors = [other for other in shards if other.sockets[0] is shared]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_turn_away, own.dup())
        tasks.start_soon(_while_all_drained, acceptors, shared, is_stopping)
        await _wait_until_another_state([shard], is_stopping)
        tasks.cancel_scope.cancel()


async def _while_all_drained(
    acceptors: Sequence[SupervisedShard], shared: socket.socket, is_stopping: Callable[[], bool]
) -> None:
    """For the last of these shards to be drained. shared: the socket that they accept from."""
    if any(shard.state is not ShardState.DRAINED for shard in acceptors):
        return
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_turn_away, shared.dup())
        await _wait_until_another_state(acceptors, is_stopping)
        tasks.cancel_scope.cancel()


async def _wait_until_another_state(shards: Sequence[SupervisedShard], is_stopping: Callable[[], bool]) -> None:
    """Wait until one of these shards is not drained any more, or the app stops."""
    while not is_stopping() and all(shard.state is ShardState.DRAINED for shard in shards):
        changes = [asyncio.ensure_future(shard.settings.changed.wait()) for shard in shards]
        try:
            await asyncio.wait(changes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for change in changes:
                change.cancel()


async def _turn_away(listening: socket.socket) -> None:
    """Close each connection as it comes, until cancelled. Owns the socket."""
    loop = asyncio.get_running_loop()
    with listening:
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError:
                # No descriptor is left, or the client has gone.
                await anyio.sleep(TURN_AWAY_PAUSE_S)
            else:
                connection.close()
