"""Simulated players: they play, watch, and write down what they were told."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import grpc
import grpc.aio
import onelane

from services.arena.ledger import Ledger
from services.arena.tally import Tally
from services.arena.v1 import (
    leaderboard_pb2,
    leaderboard_pb2_grpc,
    lobby_pb2,
    lobby_pb2_grpc,
    profile_pb2,
    profile_pb2_grpc,
)

IN_A_GAME = 4
LOUNGE_PLAYERS = 40
"""A lounge with so many is left, and another is opened."""
AFTER_ERROR_S = 0.05
AUDIT_S = 20.0
"""How long a question of the audit is asked again, while shards come back."""
BOARD = "world"
ALL_LINES = 1_000_000
Channels = Mapping[str, grpc.aio.Channel]
"""Name of an app → a channel to it, which opens streams again whose key has moved, and marks where it has."""


class Players:
    """See the module. All of them share one ledger and one tally."""

    def __init__(self, channels: Channels, tally: Tally, ledger: Ledger, think_s: float = 0.0) -> None:
        """think_s: how long players wait before each call of a game, so that they do not load the machine."""
        self._lobby: Any = lobby_pb2_grpc.LobbyStub(channels["lobby"])
        self._boards: Any = leaderboard_pb2_grpc.LeaderboardStub(channels["leaderboard"])
        self._profiles: Any = profile_pb2_grpc.ProfileStub(channels["profile"])
        self._tally = tally
        self._ledger = ledger
        self._think_s = think_s

    # Games

    async def play(self, table: str, rng: random.Random, until: anyio.Event) -> None:
        """Play games at one table, one after the other, until `until` is set."""
        game, seats = 0, range(IN_A_GAME)
        while not until.is_set():
            game += 1
            try:
                await self._game(f"{table}-{game}", [f"{table}-player-{seat}" for seat in seats], rng)
            except grpc.aio.AioRpcError:
                # The tally has counted the error. The game is abandoned, and others begin the next one: what became of
                # the records of these is not known.
                seats = range(seats.start + IN_A_GAME, seats.stop + IN_A_GAME)
                await asyncio.sleep(AFTER_ERROR_S)

    async def _game(self, room_id: str, players: list[str], rng: random.Random) -> None:
        for player in players:
            if player not in self._ledger.players:
                await self._read_record(player)
            await self._think()
            rating = await self._join(room_id, player)
            self._ledger.read(player, rating)
        for player in rng.choices(players, k=6):
            await self._think()
            await self._say(room_id, player)
        await self._think()
        await self._finish(room_id, players, rng.choice(players))
        await self._think()
        request = leaderboard_pb2.TopRequest(board=BOARD, limit=3)
        await self._tally.call("Leaderboard/Top", self._boards.Top(request))

    async def _think(self) -> None:
        await asyncio.sleep(self._think_s)

    async def _join(self, room_id: str, player: str) -> float:
        """The player's rating."""
        crashes_over = self._ledger.crashes_over
        request = lobby_pb2.JoinRequest(room_id=room_id, player=player)
        reply = await self._tally.call("Lobby/Join", self._lobby.Join(request))
        self._ledger.joined(room_id, player, reply.players, crashes_over)
        rating: float = reply.rating
        return rating

    async def _say(self, room_id: str, player: str) -> None:
        say = lobby_pb2.SayRequest(room_id=room_id, player=player, text="well played")
        try:
            await self._tally.call("Lobby/Say", self._lobby.Say(say))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                self._ledger.missed(room_id, [player])
            raise

    async def _finish(self, room_id: str, players: list[str], winner: str) -> None:
        finish = lobby_pb2.FinishRequest(room_id=room_id, winner=winner, board=BOARD)
        try:
            reply = await self._tally.call("Lobby/Finish", self._lobby.Finish(finish))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                self._ledger.missed(room_id, [winner])
            else:
                self._ledger.left(room_id)
                self._ledger.not_told(players)
            raise
        self._ledger.left(room_id)
        for player, rating in reply.ratings.items():
            self._ledger.rated(player, rating, on_board=player == winner)

    async def _read_record(self, player: str) -> None:
        request = profile_pb2.GetRequest(player=player)
        record = await self._tally.call("Profile/Get", self._profiles.Get(request))
        self._ledger.read(player, record.rating, record.games)

    # Lounges: rooms that nobody finishes, so that they are there when shards come and go

    async def lounge(self, name: str, pause_s: float, until: anyio.Event) -> None:
        """Let guests join one lounge after the other, each watched by one of them, until `until` is set."""
        number = 0
        while not until.is_set():
            number += 1
            room_id = f"{name}-{number}"
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch, room_id)
                await self._fill(room_id, pause_s, until)
                tasks.cancel_scope.cancel()

    async def _fill(self, room_id: str, pause_s: float, until: anyio.Event) -> None:
        for number in range(LOUNGE_PLAYERS):
            if until.is_set():
                return
            with suppress(grpc.aio.AioRpcError):  # The tally has counted it.
                await self._join(room_id, f"{room_id}-guest-{number}")
            with anyio.move_on_after(pause_s):
                await until.wait()

    async def _watch(self, room_id: str) -> None:
        """Watch a room wherever it moves to; and watch it again where its process was killed, which no stub does."""
        while True:
            watch = self._lobby.Watch(lobby_pb2.WatchRequest(room_id=room_id))
            try:
                async for event in watch:
                    if isinstance(event, onelane.Moved):
                        self._tally.reopened["moved"] += 1
                    else:
                        self._tally.events += 1
            except grpc.aio.AioRpcError as error:
                self._tally.reopened[error.code().name] += 1
                await asyncio.sleep(AFTER_ERROR_S)

    # The audit

    async def audit(self) -> None:
        """Ask the services for all that is in the ledger.

        Raises:
            grpc.aio.AioRpcError: a service does not answer.
        """
        for player in self._ledger.players:
            await insist(partial(self._read_record, player))
        for room_id, page in self._ledger.rooms.items():
            are_in = await asyncio.gather(*(self._is_in(room_id, player) for player in page.players))
            if missing := [player for player, is_in in zip(page.players, are_in, strict=True) if not is_in]:
                self._ledger.missed(room_id, missing)
        board = await insist(lambda: self._boards.Top(leaderboard_pb2.TopRequest(board=BOARD, limit=ALL_LINES)))
        self._tally.answered["Leaderboard/Top"] += 1
        self._ledger.read_board({line.player: line.rating for line in board.lines})

    async def _is_in(self, room_id: str, player: str) -> bool:
        """Whether a player is in a room, which nothing but `Say` tells."""
        try:
            await insist(lambda: self._lobby.Say(lobby_pb2.SayRequest(room_id=room_id, player=player)))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            return False
        return True


async def insist(ask: Callable[[], Any]) -> Any:
    """What `ask()` gives, asked again while it is UNAVAILABLE."""
    give_up_at = time.monotonic() + AUDIT_S
    while True:
        try:
            return await ask()
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > give_up_at:
                raise
        await asyncio.sleep(AFTER_ERROR_S)
