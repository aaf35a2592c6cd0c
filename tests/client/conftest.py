"""What the tests of channels may ask for."""

from collections.abc import AsyncIterator, Iterator

import grpc.aio
import pytest

from tests.client.scripted import Scripted
from tests.ports import reserved


@pytest.fixture
async def server() -> AsyncIterator[tuple[Scripted, str]]:
    scripted = Scripted()
    grpc_server = grpc.aio.server(handlers=[scripted])
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    await grpc_server.start()
    yield scripted, f"127.0.0.1:{port}"
    await grpc_server.stop(None)


@pytest.fixture
def unserved() -> Iterator[str]:
    """An address where nobody listens, until the test does."""
    with reserved() as port:
        yield f"127.0.0.1:{port}"
