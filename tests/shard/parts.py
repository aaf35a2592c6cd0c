"""The parts of a shard, made but not started, with the supervisor's end of its line; no port is bound."""

from pathlib import Path
from typing import Any

from onelane.cluster.control import QueueControl, placement_to_proto
from onelane.config import App
from onelane.core.placement import Member, Placement
from onelane.core.validation import checked, to_json
from onelane.shard.wiring import ShardParts, build_parts
from onelane.v1 import control_pb2

ECHO = "tests.echo.service:Echo"
LISTEN = "127.0.0.1:50051"


def setup(
    folder: Path | str = "/nowhere", *, services: tuple[str, ...] = (ECHO,), **settings: Any
) -> control_pb2.Setup:
    """What the supervisor sends first to the only shard of the app `echo`. settings: of the app."""
    app = checked(App, {"services": services, "listen": LISTEN} | settings)
    member = Member("echo-0", "127.0.0.1:50061", f"{folder}/echo-0")
    return control_pb2.Setup(
        app="echo",
        name=member.name,
        settings=to_json(app),
        address=member.address,
        socket=member.socket,
        placement=placement_to_proto(Placement(1, (member,))),
    )


def wired(described: control_pb2.Setup | None = None) -> tuple[ShardParts, QueueControl]:
    """The parts of a shard, by default of `setup()`, and the supervisor's end of its line."""
    supervisor_end, shard_end = QueueControl.pair()
    return build_parts(described or setup(), shard_end), supervisor_end


async def sent(supervisor_end: QueueControl) -> list[Any]:
    """Every message that the shard has sent so far."""
    messages = []
    while not supervisor_end._inbox.empty():
        messages.append(await supervisor_end.receive())
    return messages
