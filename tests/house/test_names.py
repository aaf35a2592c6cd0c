"""runtime/TELEMETRY.md names all that is exported, as it is exported."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest
from onelane import errors
from onelane.cli import admin_client

from services.arena.v1 import lobby_pb2_grpc
from services.arena.v1.lobby_pb2 import FinishRequest, JoinRequest
from tests.bounds import BOUND_S
from tests.cluster.test_arena import ARENA
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.otlp_receiver import HttpReceiver
from tests.running_app import ROOT, RunningApp, echo, eventually, running

RUNTIME = ROOT / "runtime"
Row = tuple[str, str, str, frozenset[str]]
"""Name, kind, unit, attributes."""


def table() -> dict[str, Row]:
    """The metrics of the page."""
    rows = {}
    text = (RUNTIME / "TELEMETRY.md").read_text().partition("## Metrics")[2].partition("## Spans")[0]
    for line in re.findall(r"^\| `.*$", text, re.MULTILINE):
        name, kind, unit, attributes, _ = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name.strip("`")] = (name.strip("`"), kind, unit, frozenset(re.findall(r"`([^`]+)`", attributes)))
    return rows


def words(heading: str) -> set[str]:
    """What one part of the page has in code style."""
    text = (RUNTIME / "TELEMETRY.md").read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"`([^`]+)`", text))


def test_every_instrument_that_the_code_makes_is_in_the_table_and_no_other() -> None:
    names: set[str] = set()
    for file in (RUNTIME / "onelane").rglob("*.py"):
        text = file.read_text()
        names |= set(re.findall(r'(?:\.(?:counter|gauge|histogram)|Instrument)\(\s*"([a-z_.]+)"', text))
        names |= {f"onelane.client.{what}" for what in re.findall(r'^    "(\w+)": "[A-Z].*$', text, re.MULTILINE)} & {
            f"onelane.client.{what}" for what in ("retries", "hedges", "reopenings", "ejections", "refusals")
        }
        names |= set(re.findall(r'^(?:CLIENT_)?DURATION = "([a-z.]+)"', text, re.MULTILINE))
    assert names == set(table())


def test_every_reason_of_a_refused_call_is_in_the_table() -> None:
    refused = (kind.__dict__.get("reason") for kind in vars(errors).values() if isinstance(kind, type))
    assert {reason for reason in refused if isinstance(reason, str) and reason} <= words("Metrics")


@pytest.fixture(scope="module")
def collector() -> Iterator[HttpReceiver]:
    with HttpReceiver() as collector:
        yield collector


@pytest.fixture(scope="module")
def apps(collector: HttpReceiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    environment = collector.environment | {
        "OTEL_METRIC_EXPORT_INTERVAL": "200",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_BLRP_SCHEDULE_DELAY": "100",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
    }
    toml = ARENA + echo(2, "tail = {}")
    with running(tmp_path_factory.mktemp("names"), toml, **environment) as app:
        yield app


async def play(apps: RunningApp) -> None:
    """A game, and calls that fail, wait, are refused, stall and are sent on."""
    async with onelane.connect(apps.listen["lobby"]) as channel:
        lobby: Any = lobby_pb2_grpc.LobbyStub(channel)
        for player in ("ann", "bob"):
            await lobby.Join(JoinRequest(room_id="r", player=player), timeout=BOUND_S)
        await lobby.Finish(FinishRequest(room_id="r", winner="ann"), timeout=BOUND_S)
    for shard in apps.shards():
        async with grpc.aio.insecure_channel(shard["address"]) as channel:
            stub = echo_pb2_grpc.EchoStub(channel)
            orders = ["raise secret-key", "abort", "block 0.2", "sleep 0.05", "sleep 0.01"]
            calls = [stub.Misbehave(EchoRequest(key="secret-key", order=order), timeout=BOUND_S) for order in orders]
            await asyncio.gather(*calls, stub.Unary(EchoRequest()), return_exceptions=True)


def metrics_of(collector: HttpReceiver) -> Iterator[tuple[Any, Any, list[Any]]]:
    """Resource, metric and points of all that has come."""
    for request in list(collector.metrics):
        for resource in request.resource_metrics:
            for metric in resource.scope_metrics[0].metrics:
                yield resource.resource, metric, list(getattr(metric, str(metric.WhichOneof("data"))).data_points)


def records_of(collector: HttpReceiver) -> list[tuple[Any, Any]]:
    """Every log record with its resource."""
    return [
        (resource.resource, record)
        for request in list(collector.logs)
        for resource in request.resource_logs
        for record in resource.scope_logs[0].log_records
    ]


KINDS = {"exponential_histogram": "histogram", "gauge": "gauge", "sum": "counter"}


@pytest.mark.slow
async def test_what_is_exported_is_named_on_the_page_with_its_kind_unit_and_attributes(
    apps: RunningApp, collector: HttpReceiver
) -> None:
    await play(apps)
    wanted = {"rpc.server.call.duration", "rpc.client.call.duration", "onelane.stalls", "onelane.forwards"}
    await eventually(lambda: wanted <= {metric.name for _, metric, _ in metrics_of(collector)})
    rows, resources = table(), words("Resources")
    # What the arena counts itself has names of its own.
    own_points = [exported for exported in metrics_of(collector) if not exported[1].name.startswith("arena.")]
    for resource, metric, points in own_points:
        name, kind, unit, attributes = rows[metric.name]
        assert (KINDS[metric.WhichOneof("data")], metric.unit) == (kind, unit), name
        for point in points:
            assert {pair.key for pair in point.attributes} <= attributes, name
        resource_keys = {pair.key for pair in resource.attributes} - {"deployment.environment.name"}
        assert {key for key in resource_keys if not key.startswith("telemetry.sdk.")} <= resources


@pytest.mark.slow
async def test_every_span_and_its_attributes_and_events_are_on_the_page(
    apps: RunningApp, collector: HttpReceiver
) -> None:
    await play(apps)
    await eventually(lambda: any(span.name == "turn" for span in collector.spans()))
    known = words("Spans")
    events = {f"onelane.client.{what}" for what in ("retries", "hedges", "reopenings", "ejections", "refusals")} | known
    for span in collector.spans():
        shape = re.sub(r"^offload .*", "offload NAME", re.sub(r"^[\w.]+/\w+$", "pkg.Service/Method", span.name))
        assert shape in known
        assert {pair.key for pair in span.attributes} <= known
        assert {event.name for event in span.events} <= events


@pytest.mark.slow
async def test_log_records_come_with_their_shard_and_trace(apps: RunningApp, collector: HttpReceiver) -> None:
    await play(apps)
    known = words("Logs") | {"exception.type", "exception.message", "exception.stacktrace"}
    records: list[Any] = []

    def has_come() -> bool:
        records[:] = [pair for pair in records_of(collector) if "secret-key" in str(pair[1].attributes)]
        return bool(records)

    await eventually(has_come)
    resource, record = records[0]
    assert {pair.key: pair.value.string_value for pair in resource.attributes}["onelane.shard"].startswith("echo-")
    assert {pair.key for pair in record.attributes} <= known
    assert record.trace_id.hex() in {span.trace_id.hex() for span in collector.spans()}


@pytest.mark.slow
async def test_what_the_supervisor_says_comes_too_and_is_of_no_shard(apps: RunningApp, collector: HttpReceiver) -> None:
    await asyncio.to_thread(admin_client.command, apps.admin, "/restart?app=leaderboard")
    body = "supervisor.recycled app=leaderboard"

    def resources() -> list[Any]:
        return [resource for resource, record in records_of(collector) if record.body.string_value == body]

    await eventually(resources)
    attributes = {pair.key: pair.value.string_value for pair in resources()[0].attributes}
    assert (attributes["service.name"], "onelane.shard" in attributes) == ("onelane", False)


@pytest.mark.slow
async def test_a_key_is_in_no_series_and_no_span(apps: RunningApp, collector: HttpReceiver) -> None:
    await play(apps)
    await eventually(lambda: len(collector.metrics) > 2 and collector.spans())
    assert "secret-key" not in apps.get("/metrics")
    assert not any("secret-key" in str(point) for _, _, points in metrics_of(collector) for point in points)
    assert not any("secret-key" in str(span.attributes) for span in collector.spans())


def test_the_page_is_reached_from_the_readme() -> None:
    assert "TELEMETRY.md" in Path(ROOT / "README.md").read_text()
