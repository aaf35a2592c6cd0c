"""What every test may ask for."""

from collections.abc import AsyncIterator, Iterator

import grpc.aio
import pytest
from onelane.core.placement import Member, Placement

from tests.echo.v1 import echo_pb2_grpc
from tests.running_app import Cluster, echo, running


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
async def one_loop(anyio_backend: str) -> AsyncIterator[None]:
    """Holds one event loop for the session: grpc.aio keeps every loop it has seen, and wakes them all."""
    yield  # noqa: PT022 - a generator holds the loop until the session ends


@pytest.fixture(scope="module", params=["processes", "inline", "grpcio"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The echo app on two shards: each in a process of its own, both in one, or on grpcio's listener."""
    inline = ["--inline"] if request.param == "inline" else []
    listener = "grpcio" if request.param == "grpcio" else "native"
    toml = echo(2, "reflection = true", f'listener = "{listener}"')
    with running(tmp_path_factory.mktemp("cluster"), toml, *inline) as made:
        yield made


class Where:
    """Stubs of the echo app on stock grpc.aio channels, one to each shard's own port and one to the shared."""

    def __init__(self, cluster: Cluster) -> None:
        app = cluster.status()["apps"]["echo"]
        members = tuple(Member(s["name"], s["address"], "") for s in app["shards"])
        self.placement = Placement(app["epoch"], members)
        self.channels = {m.name: grpc.aio.insecure_channel(m.address) for m in members}
        self.stubs = {name: echo_pb2_grpc.EchoStub(channel) for name, channel in self.channels.items()}
        self.shared_channel = grpc.aio.insecure_channel(cluster.listen["echo"])
        self.shared = echo_pb2_grpc.EchoStub(self.shared_channel)

    def owner_of(self, key: str) -> str:
        return self.placement.owner_of(key).name

    def home(self, key: str) -> "echo_pb2_grpc.EchoAsyncStub":
        """A stub whose connection ends at the key's owner."""
        return self.stubs[self.owner_of(key)]

    def away(self, key: str) -> "echo_pb2_grpc.EchoAsyncStub":
        """A stub whose connection ends at a shard that does not own the key."""
        return next(stub for name, stub in self.stubs.items() if name != self.owner_of(key))

    async def close(self) -> None:
        for channel in (*self.channels.values(), self.shared_channel):
            await channel.close()


@pytest.fixture
async def where(cluster: Cluster) -> AsyncIterator[Where]:
    made = Where(cluster)
    yield made
    await made.close()
