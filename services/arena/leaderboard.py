"""The best players of a board, in a database of its own: SQL on a worker thread of each lane (`shard.offload`).

The example for foreign databases: rows that other programs read too, queries by more than a key, and tables that were
there before the service. State that is the service's alone needs none of it (see `profile`).

All shards use one database. A report writes its own row and reads no state of this process, so it is right in any
process, also while shards come and go.
"""

from typing import Any

import onelane

from services.arena.boards import open_boards
from services.arena.v1 import leaderboard_pb2, leaderboard_pb2_grpc

DEFAULT_LIMIT = 10


class Leaderboard(leaderboard_pb2_grpc.LeaderboardServicer):
    def __init__(self, shard: onelane.Shard) -> None:
        self.db = shard.offload(open_boards, name="boards")

    async def Report(self, request: leaderboard_pb2.ReportRequest, context: Any) -> leaderboard_pb2.ReportReply:
        place = await self.db.run(lambda boards: boards.report(request.board, request.player, request.rating))
        return leaderboard_pb2.ReportReply(place=place)

    async def Top(self, request: leaderboard_pb2.TopRequest, context: Any) -> leaderboard_pb2.TopReply:
        best = await self.db.run(lambda boards: boards.top(request.board, request.limit or DEFAULT_LIMIT))
        lines = [leaderboard_pb2.TopReply.Line(player=player, rating=rating) for player, rating in best]
        return leaderboard_pb2.TopReply(lines=lines)
