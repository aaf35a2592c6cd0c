"""The app that is called: each item lives in one lane, so two customers never take the same one."""

from typing import Any

import grpc
import onelane

from services.examples.two_apps.v1 import stock_pb2, stock_pb2_grpc

AT_FIRST = 3


class Stock(stock_pb2_grpc.StockServicer):
    def __init__(self, shard: onelane.Shard) -> None:
        self.items = shard.keyed("items", int)

    async def Take(self, request: stock_pb2.TakeRequest, context: Any) -> stock_pb2.TakeReply:
        left = self.items.get(request.item, AT_FIRST)
        if left == 0:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{request.item} is sold out")
        self.items[request.item] = left - 1
        return stock_pb2.TakeReply(left=left - 1)
