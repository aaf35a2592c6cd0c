"""Each player's rating and games: a plain dict that is kept. An answer leaves when what it says is on disk."""

from dataclasses import dataclass
from typing import Any

import onelane

from services.arena.elo import START, rated
from services.arena.v1 import profile_pb2, profile_pb2_grpc


@dataclass(frozen=True)
class Record:
    """What is kept of a player."""

    rating: float = START
    games: int = 0


NEW = Record()
"""Of a player who has not played."""


class Profile(profile_pb2_grpc.ProfileServicer):
    def __init__(self, shard: onelane.Shard) -> None:
        self.records = shard.keyed("profiles", Record, durable=True)

    def Get(self, request: profile_pb2.GetRequest, context: Any) -> profile_pb2.GetReply:
        record = self.records.get(request.player, NEW)
        return profile_pb2.GetReply(rating=record.rating, games=record.games)

    def AddResult(self, request: profile_pb2.AddResultRequest, context: Any) -> profile_pb2.AddResultReply:
        record = self.records.get(request.player, NEW)
        rating = rated(record.rating, request.opponents_rating, request.score)
        self.records[request.player] = record = Record(rating, record.games + 1)
        return profile_pb2.AddResultReply(rating=record.rating, games=record.games)
