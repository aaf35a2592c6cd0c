"""The best players of a board: a plain dict. Its handlers are plain `def`: they run on the lane in one go."""

from typing import Any

import onelane

from services.arena.v1 import leaderboard_pb2, leaderboard_pb2_grpc

DEFAULT_LIMIT = 10


class Leaderboard(leaderboard_pb2_grpc.LeaderboardServicer):
    def __init__(self, shard: onelane.Shard) -> None:
        self.boards = shard.keyed("boards", dict[str, float])

    def Report(self, request: leaderboard_pb2.ReportRequest, context: Any) -> leaderboard_pb2.ReportReply:
        board = self.boards.setdefault(request.board, {})
        board[request.player] = request.rating
        place = 1 + sum(rating > request.rating for rating in board.values())
        return leaderboard_pb2.ReportReply(place=place)

    def Top(self, request: leaderboard_pb2.TopRequest, context: Any) -> leaderboard_pb2.TopReply:
        board = self.boards.get(request.board, {})
        best = sorted(board.items(), key=lambda line: -line[1])[: request.limit or DEFAULT_LIMIT]
        lines = [leaderboard_pb2.TopReply.Line(player=player, rating=rating) for player, rating in best]
        return leaderboard_pb2.TopReply(lines=lines)
