"""Settings of the service's own, typed and checked: `onelane reload` changes them in every shard, or in none."""

import logging
from dataclasses import dataclass
from typing import Any

import onelane

from services.examples.settings.v1 import settings_pb2, settings_pb2_grpc

log = logging.getLogger("greeter")


@dataclass(frozen=True)
class GreeterSettings:
    greeting: str = "hello"
    times: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.times <= 3:
            raise ValueError(f"times: expected 1 to 3, seen {self.times}")


class Greeter(settings_pb2_grpc.GreeterServicer):
    def __init__(self, shard: onelane.Shard) -> None:
        self.shard = shard
        shard.on_config(lambda old, new: log.info("greeting %r becomes %r", old.greeting, new.greeting))

    async def Hello(self, request: settings_pb2.HelloRequest, context: Any) -> settings_pb2.HelloReply:
        config: GreeterSettings = self.shard.config  # Replaced between two ticks, never in the middle of a call.
        return settings_pb2.HelloReply(text=" ".join([config.greeting] * config.times + [request.name]))
