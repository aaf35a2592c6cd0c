"""A key that is too long is refused by name, wherever it enters; and a key in a name of the metadata takes no hop."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest

from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import RunningApp, echo, running

pytestmark = pytest.mark.slow
LONG = "k" * 65


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    keys = ("[apps.echo.keys]", '"echo.v1.Echo/Plain" = "metadata:x-user"')
    with running(tmp_path_factory.mktemp("app"), echo(2, "max_key_bytes = 64", *keys)) as app:
        yield app


async def one(request: EchoRequest) -> AsyncIterator[EchoRequest]:
    yield request


def calls_with(stub: Any, key: str) -> dict[str, Any]:
    """Where the key is → a call that has it there."""
    return {
        "echo.v1.EchoRequest.key": stub.Unary(EchoRequest(key=key)),
        "echo.v1.EchoRequest.key of a stream": stub.Upload(one(EchoRequest(key=key))),
        "metadata onelane-key": stub.Unary(EchoRequest(key="k"), metadata=(("onelane-key", key),)),
        # Without a message: grpcio's own fails a call with "Internal error from Core" where it writes while that ends.
        "metadata onelane-key of a stream": stub.Upload(metadata=(("onelane-key", key),)),
        "metadata x-user": stub.Plain(EchoRequest(key="k"), metadata=(("x-user", key),)),
    }


async def test_a_long_key_is_refused_by_name_wherever_it_enters_and_counted(app: RunningApp) -> None:
    async with grpc.aio.insecure_channel(app.listen["echo"]) as channel:
        before = app.metric("onelane_refusals_total", onelane_reason="key")
        calls = calls_with(echo_pb2_grpc.EchoStub(channel), LONG)
        for place, call in calls.items():
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT, place
            text = f"{place.removesuffix(' of a stream')} is too long: a key has at most 64 bytes (max_key_bytes)"
            assert await call.details() == text
        assert app.metric("onelane_refusals_total", onelane_reason="key") == before + len(calls)
        longest = "k" * 64
        assert (await echo_pb2_grpc.EchoStub(channel).Unary(EchoRequest(key=longest, text="x"))).text == "x"


@pytest.mark.parametrize(
    ("order", "place"),
    [("turn", "the key of the turn"), ("by_name", "the key for echo.v1.Echo/Unary")],
)
async def test_a_service_that_names_a_long_key_is_refused_likewise(app: RunningApp, order: str, place: str) -> None:
    async with grpc.aio.insecure_channel(app.listen["echo"]) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        call = stub.Across(EchoRequest(key="k", order=f"{order} {LONG}"))
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (await call.details() or "").startswith(f"{place} is too long")


async def test_calls_of_a_ring_channel_whose_key_is_in_a_name_of_the_metadata_take_no_hop(app: RunningApp) -> None:
    async with onelane.connect(app.listen["echo"]) as channel:
        await channel.channel_ready()
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        before = app.metric("onelane_forwards_total")
        answers = [
            # So many that each shard has some.
            await stub.Plain(EchoRequest(key="k"), metadata=(("x-user", f"user {number}"),))
            for number in range(64)
        ]
        assert {answer.shard for answer in answers} == {"echo-0", "echo-1"}
        assert app.metric("onelane_forwards_total") == before


async def test_a_key_that_this_client_takes_for_too_long_is_left_to_the_server(app: RunningApp) -> None:
    async with onelane.connect(app.listen["echo"]) as channel:
        await channel.channel_ready()
        call: Any = echo_pb2_grpc.EchoStub(channel).Unary(EchoRequest(key="k" * 2000))
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "at most 64 bytes" in (await call.details() or "")
