"""A real Prometheus server scrapes a cluster: sums by PromQL equal the counts of the clients."""

import asyncio
import json
import os
import re
import signal
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tests import tools
from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.house.test_deploy import dashboard
from tests.ports import reserved
from tests.running_app import RunningApp, echo, eventually, running

pytestmark = pytest.mark.slow
CONFIG = """
global: {{ scrape_interval: 250ms, scrape_timeout: 250ms }}
scrape_configs:
  - job_name: onelane
    static_configs: [{{ targets: ["{target}"] }}]
"""
METHOD = 'rpc_method="echo.v1.Echo/Misbehave"'
TRACE = "5af7651916cd43dd8448eb211c80319c"


class Prometheus:
    """A running server."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def ask(self, path: str, **query: str) -> Any:
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=BOUND_S) as answer:
            return json.load(answer)["data"]

    def value(self, query: str) -> float:
        """The one value of an expression; 0 where there is none."""
        result = self.ask("query", query=query)["result"]
        return float(result[0]["value"][1]) if result else 0.0

    def by(self, label: str, query: str) -> dict[str, float]:
        return {row["metric"][label]: float(row["value"][1]) for row in self.ask("query", query=query)["result"]}


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """Scraping `target` on a free port; stopped by its pid at the end."""
    (folder / "prometheus.yml").write_text(CONFIG.format(target=target))
    with reserved() as port:
        process = subprocess.Popen(
            [
                tools.prometheus(),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--enable-feature=exemplar-storage",
                "--log.level=error",
            ]
        )
        try:
            yield Prometheus(port)
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    with running(tmp_path_factory.mktemp("scraped"), echo(2)) as app:
        yield app


@pytest.fixture(scope="module", autouse=True)
def server(cluster: RunningApp, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Started before the first test: Prometheus discovers its target only after 5 s; tests without it run meanwhile."""
    with prometheus(tmp_path_factory.mktemp("prometheus"), cluster.admin) as scraper:
        yield scraper


@pytest.fixture(scope="module")
async def seen(server: Prometheus) -> Prometheus:
    await eventually(server.is_ready)
    return server


async def call(cluster: RunningApp, orders: list[str], **more: Any) -> Counter[str]:
    """Make these calls; the number of calls by status."""
    counted: Counter[str] = Counter()
    async with grpc.aio.insecure_channel(cluster.listen["echo"]) as channel:
        stub = echo_pb2_grpc.EchoStub(channel)

        async def one(number: int, order: str) -> None:
            try:
                await stub.Misbehave(EchoRequest(key=str(number % 7), order=order), timeout=BOUND_S, **more)
                counted["OK"] += 1
            except grpc.aio.AioRpcError as error:
                counted[error.code().name] += 1

        await asyncio.gather(*(one(number, order) for number, order in enumerate(orders)))
    return counted


async def test_a_killed_shard_loses_at_most_its_last_tick_and_the_gap_is_counted(
    tmp_path: Path,
) -> None:
    with running(tmp_path, echo(1)) as app:
        counted = await call(app, ["add 0"] * 50)
        # A scrape asks the shard first, so all of these have been moved out.
        assert app.metric("onelane_calls_total", rpc_method="echo.v1.Echo/Misbehave") == counted["OK"] == 50
        assert app.metric("onelane_reports_gaps_total") == 0
        (shard,) = app.shards()
        os.kill(shard["pid"], signal.SIGSTOP)
        os.kill(shard["pid"], signal.SIGKILL)
        await eventually(lambda: app.shards()[0]["restarts"] == 1 and app.shards()[0]["state"] == "ready")
        counted += await call(app, ["add 0"] * 20)
        assert counted["OK"] == 70
        assert app.metric("onelane_calls_total", rpc_method="echo.v1.Echo/Misbehave") == 70
        assert app.metric("onelane_reports_gaps_total") == 1
        assert app.metric("onelane_reports_lost_total") == 0


def have_come_back(app: RunningApp, killed: int) -> bool:
    """One that was killed is `ready` as well until its supervisor has seen it."""
    shards = app.shards()
    return sum(shard["restarts"] for shard in shards) == killed and {shard["state"] for shard in shards} == {"ready"}


async def test_shards_that_are_killed_under_load_lose_no_more_than_a_tick_each(tmp_path: Path) -> None:
    with running(tmp_path, echo(2)) as app:
        done = asyncio.Event()
        counted: Counter[str] = Counter()
        at_once, may_be_lost = 40, 0

        async def load() -> None:
            while not done.is_set():
                counted.update(await call(app, ["add 0"] * at_once))

        loading = asyncio.create_task(load())
        for kills in (1, 2, 3):
            await eventually(lambda killed=kills - 1: have_come_back(app, killed))  # type: ignore[misc]
            before = counted["OK"]
            victim = app.shards()[kills % 2]["pid"]
            # A scrape asks the shards for all that they have counted. Since then, no more than what is under way is
            # answered: until the kill this loop, and with it the load, stands still.
            app.get("/metrics")
            os.kill(victim, signal.SIGKILL)
            may_be_lost += at_once
            await eventually(lambda before=before: counted["OK"] >= before + 40)  # type: ignore[misc]
        done.set()
        await loading
        exported = app.metric("onelane_calls_total", rpc_method="echo.v1.Echo/Misbehave", rpc_response_status_code="OK")
        gaps = app.metric("onelane_reports_gaps_total")
    assert gaps == 3
    # No call is counted twice: a counted call without an answer failed at the client.
    assert counted["OK"] - may_be_lost <= exported <= sum(counted.values())


async def test_sums_of_the_machine_are_served_beside_the_series_by_shard(cluster: RunningApp) -> None:
    """Of this method alone: the cluster's own calls go on meanwhile."""

    def of_the_machine() -> tuple[float, ...]:
        text = cluster.get("/metrics?by=app")
        assert "onelane_shard=" not in text
        rows = re.findall(rf"^onelane_calls_total\{{.*{METHOD}.*\}} (\S+)$", text, re.MULTILINE)
        return tuple(map(float, rows))

    before = sum(of_the_machine())
    assert await call(cluster, ["add 0"] * 10) == {"OK": 10}
    after = of_the_machine()
    by_shard = cluster.metric("onelane_calls_total", rpc_method="echo.v1.Echo/Misbehave")
    assert sum(after) == by_shard == before + 10


async def test_without_series_by_shard_the_sums_of_the_machine_are_served(tmp_path: Path) -> None:
    with running(tmp_path, "per_shard_series = false\n" + echo(2)) as app:
        counted = await call(app, ["add 0"] * 30)
        text = app.get("/metrics")
        assert "onelane_shard=" not in text
        assert app.metric("onelane_calls_total", rpc_method="echo.v1.Echo/Misbehave") == counted["OK"] == 30
        assert re.search(r"^onelane_timers\{onelane_app=\"echo\"\} 0\.0$", text, re.MULTILINE)
        # The page and the status have them by shard all the same.
        assert sum(shard["calls"] for shard in app.shards()) >= 30


async def test_its_sums_are_what_clients_counted_by_status(cluster: RunningApp, seen: Prometheus) -> None:
    labels = {"rpc_method": "echo.v1.Echo/Misbehave"}
    before = Counter(
        {
            status: int(cluster.metric("onelane_calls_total", rpc_response_status_code=status, **labels))
            for status in ("OK", "NOT_FOUND", "INTERNAL")
        }
    )
    counted = await call(cluster, (["add 0"] * 40 + ["abort"] * 3 + ["raise x"] * 2) * 4)
    assert counted == {"OK": 160, "NOT_FOUND": 12, "INTERNAL": 8}
    for series in ("onelane_calls_total", "rpc_server_call_duration_seconds_count"):
        query = f"sum by (rpc_response_status_code) ({series}{{{METHOD}}})"

        def is_what_was_counted(query: str = query) -> bool:
            return seen.by("rpc_response_status_code", query) == before + counted

        await eventually(is_what_was_counted)


async def test_its_quantiles_are_those_of_the_calls(cluster: RunningApp, seen: Prometheus) -> None:
    await call(cluster, ["sleep 0.05"] * 40)
    where = f'{METHOD}, rpc_response_status_code="OK"'
    bucket = "rpc_server_call_duration_seconds_bucket"
    buckets = f"sum by (le) ({bucket}{{{where}}})"
    await eventually(lambda: seen.value(f"sum(rpc_server_call_duration_seconds_count{{{where}}})") >= 40)
    # Every one of them took 50 ms at least: of the bucket that ends at 2^-5 s none.
    above = f'sum({bucket}{{{where}, le="+Inf"}}) - sum({bucket}{{{where}, le="0.03125"}})'
    await eventually(lambda: seen.value(above) >= 40)
    assert seen.value(f"histogram_quantile(0.999, {buckets})") >= 0.03125


async def test_an_exemplar_leads_from_a_bucket_to_its_trace(cluster: RunningApp, seen: Prometheus) -> None:
    await call(cluster, ["sleep 0.2"], metadata=(("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"),))

    def found() -> bool:
        query = "rpc_server_call_duration_seconds_bucket"
        rows = seen.ask("query_exemplars", query=query, start="0", end="9999999999")
        return any(exemplar["labels"]["trace_id"] == TRACE for row in rows for exemplar in row["exemplars"])

    await eventually(found)


async def test_prometheus_answers_every_expression_of_the_dashboard(cluster: RunningApp, seen: Prometheus) -> None:
    await call(cluster, ["add 0"] * 5)
    targets = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    queries = [
        text.replace("$__rate_interval", "1m").replace("$__range", "1h").replace("$app", "echo") for text in targets
    ]

    def answered() -> int:
        # An expression that is none is an HTTP error. A rate has no value before the second scrape.
        return sum(bool(seen.ask("query", query=query)["result"]) for query in queries)

    await eventually(lambda: answered() >= 8)
