"""A drained shard serves nobody, and holds nobody up: the page, /healthz and what happens agree."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.bounds import BOUND_S
from tests.conftest import Where
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import RunningApp, echo, eventually, http_request, running

pytestmark = pytest.mark.slow
REFUSED = (grpc.StatusCode.UNAVAILABLE, "shard echo-1, which owns the key, is drained")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    with running(tmp_path_factory.mktemp("drained"), echo(2)) as app:
        yield app


@pytest.fixture
async def where(app: RunningApp) -> AsyncIterator[Where]:
    where = Where(app)
    yield where
    await where.close()


async def bring(app: RunningApp, state: str, command: str, index: int = 1) -> None:
    assert http_request(f"http://{app.admin}/shards/echo/{index}/{command}", method="POST", X_Onelane="1")[0] == 200
    await eventually(lambda: app.shards()[index]["state"] == state and not app.is_changing())


async def code_of(call: Any) -> tuple[grpc.StatusCode, str]:
    return await call.code(), await call.details()


async def code_of_new_connection(address: str, key: str) -> tuple[grpc.StatusCode, str]:
    async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        return await code_of(echo_pb2_grpc.EchoStub(channel).Unary(EchoRequest(key=key), timeout=BOUND_S))


async def test_the_keys_of_a_drained_shard_are_with_the_others_until_it_is_restarted(
    app: RunningApp, where: Where
) -> None:
    key, other = where.key_of("echo-1"), where.key_of("echo-0")
    own_address = app.shards()[1]["address"]
    await bring(app, "drained", "drain")
    assert (await where.away(key).Unary(EchoRequest(key=key), timeout=BOUND_S)).shard == "echo-0"
    assert (await where.away(key).Upload(iter([EchoRequest(key=key)]), timeout=BOUND_S)).shard == "echo-0"
    assert await code_of_new_connection(app.listen["echo"], key) == (grpc.StatusCode.OK, "")
    assert (await code_of_new_connection(own_address, key))[0] is grpc.StatusCode.UNAVAILABLE
    assert await code_of_new_connection(app.listen["echo"], other) == (grpc.StatusCode.OK, "")
    assert http_request(f"http://{app.admin}/healthz") == (503, "1/2 shards ready; echo-1 is drained\n")
    await bring(app, "ready", "restart")
    assert (await where.away(key).Unary(EchoRequest(key=key))).shard == "echo-1"
    assert await code_of_new_connection(own_address, key) == (grpc.StatusCode.OK, "")
    assert http_request(f"http://{app.admin}/healthz") == (200, "2/2 shards ready\n")


async def test_where_all_shards_are_drained_connections_are_closed_and_do_not_hang_until_one_is_restarted(
    app: RunningApp, where: Where
) -> None:
    key = where.key_of("echo-1")
    await bring(app, "drained", "drain", 0)
    await bring(app, "drained", "drain", 1)
    assert (await code_of_new_connection(app.listen["echo"], key))[0] is grpc.StatusCode.UNAVAILABLE
    await bring(app, "ready", "restart", 1)
    assert await code_of_new_connection(app.listen["echo"], key) == (grpc.StatusCode.OK, "")
    await bring(app, "ready", "restart", 0)


async def test_where_the_placement_cannot_change_the_keys_of_a_drained_shard_are_refused_until_it_is_restarted(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with running(tmp_path_factory.mktemp("refused"), echo(2, 'membership = "static"')) as app:
        where = Where(app)
        key, other = where.key_of("echo-1"), where.key_of("echo-0")
        await bring(app, "drained", "drain")
        assert await code_of(where.away(key).Unary(EchoRequest(key=key), timeout=BOUND_S)) == REFUSED
        assert await code_of(where.away(key).Upload(iter([EchoRequest(key=key)]), timeout=BOUND_S)) == REFUSED
        assert await code_of_new_connection(app.listen["echo"], key) == REFUSED
        assert await code_of_new_connection(app.listen["echo"], other) == (grpc.StatusCode.OK, "")
        assert app.metric("onelane_refusals_total", onelane_reason="drained") == 3
        await bring(app, "ready", "restart")
        assert (await where.away(key).Unary(EchoRequest(key=key))).shard == "echo-1"
        await where.close()


async def test_an_app_with_a_drained_shard_stops_as_any_other(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running(tmp_path_factory.mktemp("stopped"), echo(2)) as app:
        await bring(app, "drained", "drain")
        assert app.stop() == 0
        assert "Traceback" not in app.log.read_text()
