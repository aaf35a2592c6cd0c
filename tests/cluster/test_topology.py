"""The placement is public; the status of all apps is for proven peers, or for anyone where the app is configured so."""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.cluster.membership.supervised import SupervisedMembership
from onelane.cluster.topology import Topology
from onelane.core.placement import Member, Placement
from onelane.lane.refusals import REFUSAL_LOG_S
from onelane.testing.listener import MemoryCall
from onelane.v1 import topology_pb2, topology_pb2_grpc

from tests.bounds import BOUND_S
from tests.running_app import RunningApp, echo, running
from tests.servers import Files, stock_secure

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    with running(tmp_path_factory.mktemp("app"), echo(1)) as app:
        yield app


PLACEMENT = Placement(1, (Member("echo-0", "127.0.0.1:1", ""),))


def topology_of(membership: SupervisedMembership, **callbacks: Any) -> Topology:
    arguments: dict[str, Any] = {"status": None, "refused": None} | callbacks
    return Topology(membership, app="echo", listen="", keys={}, once_methods=list, is_status_open=False, **arguments)


def refusals(app: RunningApp) -> list[str]:
    return [line for line in app.log.read_text().splitlines() if "call.refused" in line]


async def ask(channel: grpc.aio.Channel) -> Any:
    return await topology_pb2_grpc.TopologyStub(channel).Status(topology_pb2.StatusRequest(), timeout=BOUND_S)


async def test_a_stranger_gets_the_placement_and_no_status_and_that_is_counted_and_logged(app: RunningApp) -> None:
    async with grpc.aio.insecure_channel(app.listen["echo"]) as channel:
        watch = topology_pb2_grpc.TopologyStub(channel).Watch(topology_pb2.WatchRequest())
        placement: Any = await watch.read()
        assert placement.app == "echo"
        before = app.metric("onelane_refusals_total", onelane_reason="stranger")
        lines_before, began = len(refusals(app)), time.monotonic()
        for _ in range(20):
            with pytest.raises(grpc.aio.AioRpcError, match="open_status") as caught:
                await ask(channel)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        watch.cancel()
    assert app.metric("onelane_refusals_total", onelane_reason="stranger") == before + 20
    lines = refusals(app)
    # One a second, and the calls of a busy machine take some.
    assert len(lines) - lines_before <= 1 + (time.monotonic() - began) / REFUSAL_LOG_S
    assert "method=onelane.v1.Topology/Status shard=echo-0 reason=stranger peer=ipv4:127.0.0.1:" in lines[0]


async def test_a_sibling_gets_the_status_and_a_stranger_is_not_asked_for() -> None:
    asked: list[str] = []

    async def status() -> str:
        asked.append("status")
        return "all"

    topology = topology_of(
        SupervisedMembership(PLACEMENT), status=status, refused=lambda call, reason: asked.append(reason)
    )
    request = topology_pb2.StatusRequest()
    for trusted in (True, False):
        call = MemoryCall("/onelane.v1.Topology/Status", (), trusted=trusted, deadline_s=None)
        with suppress(grpc.aio.AbortError):
            assert (await topology.Status(request, call)).json == "all"
    assert asked == ["status", "stranger"]


async def test_watches_share_the_message_of_a_placement_and_get_each_newer_one() -> None:
    membership = SupervisedMembership(PLACEMENT)
    topology = topology_of(membership)
    watches = [aiter(topology.Watch(topology_pb2.WatchRequest(), None)) for _ in range(100)]
    for placement in (PLACEMENT, Placement(2, PLACEMENT.members)):
        membership.offer(placement)
        messages = [await anext(watch) for watch in watches]
        assert {message.epoch for message in messages} == {placement.epoch}
        assert len({id(message) for message in messages}) == 1


async def test_a_client_whose_certificate_was_checked_gets_the_status(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.issue("client", "client.test")
    names = {"cert": "server.pem", "key": "server.key", "client_ca": "ca.pem"}
    table = [f'{name} = "{files.path(file)}"' for name, file in names.items()]
    with running(tmp_path, echo(1, "[apps.echo.tls]", *table)) as app:
        async with stock_secure(app.listen["echo"], files, cert="client") as channel:
            assert "echo-0" in (await ask(channel)).json
