"""A service with one durable dict of each codec, as its second release has them."""

from dataclasses import dataclass, field
from typing import Any

import onelane

from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest


@dataclass
class Cart:
    """Since version 2 `items` has numbers; before, it was a list of names."""

    items: dict[str, int] = field(default_factory=dict)
    note: str = ""


class Reversed:
    """A codec of the service."""

    name = "reversed"

    @staticmethod
    def encode(value: bytes) -> bytes:
        return value[::-1]

    @staticmethod
    def decode(data: bytes) -> bytes:
        return data[::-1]


def count_items(cart: dict[str, Any]) -> dict[str, Any]:
    return cart | {"items": dict.fromkeys(cart["items"], 1)}


class Stored(echo_pb2_grpc.EchoServicer):
    def __init__(self, shard: onelane.Shard) -> None:
        print("the services are made")  # noqa: T201 - stdout is the command's
        self.carts = shard.keyed("carts", Cart, durable=True, version=2, migrate={1: count_items})
        self.requests = shard.keyed("requests", EchoRequest, durable=True)
        self.blobs = shard.keyed("blobs", bytes, durable=True, codec=Reversed)
        self.anything = shard.keyed("anything", object, durable=True)
