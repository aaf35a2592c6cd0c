"""Rooms in which players meet. A room is a plain object: everyone in it is in this lane."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import onelane

from services.arena.v1 import (
    leaderboard_pb2,
    leaderboard_pb2_grpc,
    lobby_pb2,
    lobby_pb2_grpc,
    profile_pb2,
    profile_pb2_grpc,
)

Context = grpc.aio.ServicerContext[Any, Any]
WATCHER_BACKLOG = 256
"""Events that may wait for one watcher; beyond that it gets no more."""


@dataclass
class Room:
    """The players in a room, with their ratings."""

    players: dict[str, float] = field(default_factory=dict)


Watchers = set[asyncio.Queue[lobby_pb2.Event]]
"""A queue for each stream that watches a room."""


def tell(watchers: Watchers, event: lobby_pb2.Event) -> int:
    """Queue an event for every watcher, and drop watchers whose queue is full. The number of watchers left."""
    for watcher in list(watchers):
        try:
            watcher.put_nowait(event)
        except asyncio.QueueFull:
            watchers.discard(watcher)
    return len(watchers)


class Lobby(lobby_pb2_grpc.LobbyServicer):
    def __init__(self, shard: onelane.Shard) -> None:
        self.rooms = shard.keyed("rooms", Room)
        # A queue belongs to the stream of its watcher, which ends where the room leaves this process.
        self.watchers = shard.keyed("watchers", Watchers, moves=False)
        self.profiles = shard.stub(profile_pb2_grpc.ProfileStub, to="profile")
        self.boards = shard.stub(leaderboard_pb2_grpc.LeaderboardStub, to="leaderboard")
        self.shard = shard
        self.announcements = shard.subscribe("announcements", lobby_pb2.Announcement, self._announced)
        self.joins = shard.stats.counter("arena.joins", unit="{join}", description="Players who joined a room")

    async def Join(self, request: lobby_pb2.JoinRequest, context: Context) -> lobby_pb2.JoinReply:
        profile = await self.profiles.Get(profile_pb2.GetRequest(player=request.player))
        room = self.rooms.setdefault(request.room_id, Room())
        room.players[request.player] = profile.rating
        self._tell(request.room_id, lobby_pb2.Event(joined=request.player))
        self.joins.add(1)
        return lobby_pb2.JoinReply(players=list(room.players), rating=profile.rating)

    async def Say(self, request: lobby_pb2.SayRequest, context: Context) -> lobby_pb2.SayReply:
        room = self.rooms.get(request.room_id)
        if room is None or request.player not in room.players:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{request.player} is not in {request.room_id}")
        line = lobby_pb2.Said(player=request.player, text=request.text)
        return lobby_pb2.SayReply(heard_by=self._tell(request.room_id, lobby_pb2.Event(said=line)))

    async def Finish(self, request: lobby_pb2.FinishRequest, context: Context) -> lobby_pb2.FinishReply:
        room = self.rooms.get(request.room_id)
        if room is None or request.winner not in room.players:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{request.winner} is not in {request.room_id}")
        del self.rooms[request.room_id]
        watchers = self.watchers.pop(request.room_id, set())
        ratings = {player: await self._rate(player, room, request.winner) for player in room.players}
        report = leaderboard_pb2.ReportRequest(
            board=request.board or "world", player=request.winner, rating=ratings[request.winner]
        )
        place = (await self.boards.Report(report)).place
        tell(watchers, lobby_pb2.Event(finished=request.winner))
        return lobby_pb2.FinishReply(ratings=ratings, place=place)

    async def Announce(self, request: lobby_pb2.AnnounceRequest, context: Context) -> lobby_pb2.AnnounceReply:
        self.shard.publish("announcements", lobby_pb2.Announcement(text=request.text), at_once=True)
        return lobby_pb2.AnnounceReply()

    def _announced(self, item: lobby_pb2.Announcement | onelane.Lost) -> None:
        if isinstance(item, lobby_pb2.Announcement):
            for watchers in self.watchers.values():
                tell(watchers, lobby_pb2.Event(announced=item.text))

    def _tell(self, room_id: str, event: lobby_pb2.Event) -> int:
        return tell(self.watchers.get(room_id, set()), event)

    async def _rate(self, player: str, room: Room, winner: str) -> float:
        others = [rating for name, rating in room.players.items() if name != player] or [room.players[player]]
        result = profile_pb2.AddResultRequest(
            player=player, opponents_rating=sum(others) / len(others), score=float(player == winner)
        )
        return (await self.profiles.AddResult(result)).rating

    async def Watch(self, request: lobby_pb2.WatchRequest, context: Context) -> AsyncIterator[lobby_pb2.Event]:
        watchers = self.watchers.setdefault(request.room_id, set())
        events: asyncio.Queue[lobby_pb2.Event] = asyncio.Queue(WATCHER_BACKLOG)
        watchers.add(events)
        await context.send_initial_metadata(())
        try:
            while True:
                event = await events.get()
                yield event
                if event.WhichOneof("kind") == "finished":
                    return
        finally:
            watchers.discard(events)
            if not watchers and self.watchers.get(request.room_id) is watchers:
                del self.watchers[request.room_id]
