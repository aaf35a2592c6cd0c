"""`async def start(self)` and `async def stop(self)` of services: when they are called, and what failures do."""

import asyncio
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from onelane.errors import BadService, ServiceRaised
from onelane.shard.services import check_hooks
from onelane.shard.shard import Shard
from onelane.shard.wiring import ShardParts
from onelane.testing.cluster import Cluster

from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.greeter.v1 import greeter_pb2_grpc
from tests.running_app import eventually, http_request, run_to_end, running
from tests.shard.parts import setup, wired

calls: list[str] = []
starts: list[str] = []
HERE = __name__


@pytest.fixture(autouse=True)
def no_calls() -> Iterator[None]:
    calls.clear()
    yield
    calls.clear()


class First(echo_pb2_grpc.EchoServicer):
    def __init__(self, shard: Shard) -> None:
        self.shard = shard

    async def start(self) -> None:
        calls.append("first starts")
        await asyncio.sleep(0)
        calls.append("first has started")

    async def stop(self) -> None:
        calls.append("first stops")
        logging.getLogger("onelane.shard").warning("first stops")

    async def Unary(self, request: EchoRequest, context: object) -> EchoReply:
        calls.append("call")
        return EchoReply(shard=self.shard.name)


class Second(greeter_pb2_grpc.GreeterServicer):
    async def start(self) -> None:
        calls.append("second starts")

    async def stop(self) -> None:
        calls.append("second stops")


class Raises(Second):
    async def start(self) -> None:
        raise ConnectionError("the kitchen is closed")


class Hangs(Second):
    async def start(self) -> None:
        await asyncio.Event().wait()


class CancelsItself(Second):
    async def start(self) -> None:
        raise asyncio.CancelledError


class TimesOut(Second):
    async def start(self) -> None:
        raise TimeoutError("the kitchen is slow")


class Exits(Second):
    async def start(self) -> None:
        sys.exit("set DATABASE_URL first")


class Panics(Second):
    async def start(self) -> None:
        raise BaseException("as an extension in Rust does")


class ExitsAtARestart(First):
    async def start(self) -> None:
        if starts:
            sys.exit("set DATABASE_URL first")
        starts.append("")


class StopExits(Second):
    async def stop(self) -> None:
        sys.exit("the kitchen is closed")


class StopRaises(Second):
    async def stop(self) -> None:
        raise ConnectionError("the kitchen\nis closed")


class StopHangs(Second):
    async def stop(self) -> None:
        await asyncio.Event().wait()


class StopCancelsItself(Second):
    async def stop(self) -> None:
        raise asyncio.CancelledError


class StartIsPlain(Second):
    def start(self) -> None:  # type: ignore[override]  # what is tested
        """Not awaitable."""


class StopTakesMore(Second):
    async def stop(self, now: bool) -> None:  # type: ignore[override]  # what is tested
        """No shard knows `now`."""


def parts_of(*services: type, **settings: Any) -> ShardParts:
    names = tuple(f"{HERE}:{service.__name__}" for service in services)
    keys = {"greeter.v1.Greeter/*": "ANY"} if issubclass(services[-1], Second) else {}
    parts, _ = wired(setup(services=names, keys=keys, **settings))
    parts.services.load()
    return parts


async def test_services_start_in_the_order_of_the_settings_and_stop_in_the_reverse() -> None:
    parts = parts_of(First, Second)
    await parts.services.start()
    assert calls == ["first starts", "first has started", "second starts"]
    calls.clear()
    await parts.services.stop()
    assert calls == ["second stops", "first stops"]
    await parts.services.stop()
    assert calls == ["second stops", "first stops"]


@pytest.mark.parametrize(
    ("service", "error", "text"),
    [
        (Raises, ConnectionError, "the kitchen is closed"),
        (Hangs, BadService, r"Hangs: start\(\) did not end within start_s, 0\.02 s"),
        (CancelsItself, BadService, r"CancelsItself: start\(\) was cancelled by itself"),
        (TimesOut, TimeoutError, "the kitchen is slow"),
        (Exits, ServiceRaised, "SystemExit: set DATABASE_URL first"),
        (Panics, ServiceRaised, "BaseException: as an extension in Rust does"),
    ],
)
async def test_where_one_does_not_start_those_before_it_are_stopped(
    service: type, error: type[Exception], text: str
) -> None:
    parts = parts_of(First, service, start_s=0.02)
    with pytest.raises(error, match=text):
        await parts.services.start()
    assert calls == ["first starts", "first has started", "first stops"]


@pytest.mark.parametrize(
    ("service", "text"),
    [
        (StopRaises, "error=ConnectionError: the kitchen is closed"),
        (StopHangs, "error=TimeoutError: it did not end within stop_s, 0.02 s, of all services"),
        (StopExits, "SystemExit: the kitchen is closed"),
        (StopCancelsItself, "error=CancelledError: by itself"),
    ],
)
async def test_where_one_does_not_stop_that_is_logged_and_the_others_are_stopped(
    service: type, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    parts = parts_of(First, service, stop_s=0.02)
    await parts.services.start()
    with caplog.at_level(logging.ERROR, "onelane.shard"):
        await parts.services.stop()
    assert calls[-1] == "first stops"
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("service.stop_failed shard=echo-0 service=tests.shard.test_services_start_and_stop:")
    assert text in line


@pytest.mark.parametrize(("service", "name"), [(StartIsPlain, "start"), (StopTakesMore, "stop")])
def test_a_method_of_that_name_that_cannot_be_called_so_is_refused(service: type, name: str) -> None:
    with pytest.raises(BadService, match=rf"{service.__name__}\.{name}: expected `async def {name}\(self\)`"):
        parts_of(service)


def test_an_rpc_of_that_name_is_no_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    generated = type("EchoServicer", (), {"start": lambda self, request, context: None})
    monkeypatch.setitem(sys.modules, "made_by_protoc", SimpleNamespace(add_EchoServicer_to_server=None))
    generated.__module__ = "made_by_protoc"
    service = type("Service", (generated, First), {"start": lambda self, request, context: None})
    check_hooks(service(None))


async def test_in_a_cluster_a_service_starts_before_its_first_call_and_stops_after_the_last_unless_it_is_killed() -> (
    None
):
    async with Cluster(First, shards=1) as cluster:
        stub = cluster.stub(echo_pb2_grpc.EchoStub)
        await stub.Unary(EchoRequest(key="k"))
        await cluster.kill(0)
        await cluster.restart(0)
        assert calls == ["first starts", "first has started", "call", "first starts", "first has started"]
    assert calls[-1] == "first stops"


@pytest.mark.slow
def test_a_service_that_does_not_start_ends_the_app_as_its_constructor_would(tmp_path: Path) -> None:
    toml = f'[apps.echo]\nservices = ["{HERE}:First", "{HERE}:Raises"]\nlisten = "127.0.0.1:0"\nshards = 1\n'
    toml += 'keys = { "greeter.v1.Greeter/*" = "ANY" }'
    run = run_to_end(tmp_path, toml)
    assert run.returncode == 1
    assert "shard echo-0 failed to start: ConnectionError: the kitchen is closed\nTraceback" in run.stderr


@pytest.mark.slow
async def test_inline_a_service_that_exits_at_a_restart_leaves_the_supervisor_running(tmp_path: Path) -> None:
    toml = f'[apps.echo]\nservices = ["{HERE}:ExitsAtARestart"]\nshards = 1\nlisten = "127.0.0.1:0"\n'
    with running(tmp_path, toml, "--inline") as app:
        http_request(f"http://{app.admin}/shards/echo/0/restart", method="POST", X_Onelane="1")
        await eventually(lambda: "SystemExit: set DATABASE_URL first" in app.log.read_text())
        assert app.process.poll() is None
        # A restart whose next process does not start changes nothing.
        assert app.shards()[0]["state"] == "ready"


def test_a_service_stops_when_its_app_does(tmp_path: Path) -> None:
    toml = f'[apps.echo]\nservices = ["{HERE}:First"]\nlisten = "127.0.0.1:0"\nshards = 1'
    with running(tmp_path, toml) as app:
        assert app.stop() == 0
        assert "first stops" in app.log.read_text()
