"""One app calls another: the stub goes straight to the owner of the key, and carries the deadline and the trace."""

from typing import Any

import onelane

from services.examples.two_apps.v1 import shop_pb2, shop_pb2_grpc, stock_pb2, stock_pb2_grpc


class Shop(shop_pb2_grpc.ShopServicer):
    def __init__(self, shard: onelane.Shard) -> None:
        self.stock = shard.stub(stock_pb2_grpc.StockStub, to="stock")

    async def Buy(self, request: shop_pb2.BuyRequest, context: Any) -> shop_pb2.BuyReply:
        # A call that fails raises grpc.aio.AioRpcError; unhandled, its status becomes the status of this call.
        reply = await self.stock.Take(stock_pb2.TakeRequest(item=request.item))
        return shop_pb2.BuyReply(left=reply.left)
