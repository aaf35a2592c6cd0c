"""The durable state of each shard is seen on the page, in `onelane status`, in `onelane top`, and by /healthz."""

import asyncio
import io
import json
import re
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import grpc.aio
import pytest
from click.testing import CliRunner
from onelane.cli import top
from onelane.cli.main import main
from playwright.async_api import Browser, expect
from rich.console import Console

from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.running_app import RunningApp, echo, eventually, running
from tests.supervisor.admin.opened_page import opened

pytestmark = pytest.mark.slow
HELD = 48
"""Keys, so many that some of them move to a second shard and some do not, at whatever ports."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    toml = echo(1, "[apps.echo.state]", "patience_s = 0.1")
    with running(
        tmp_path_factory.mktemp("kept"), toml.replace("tests.echo.service:Echo", "tests.state.kept_service:Kept")
    ) as cluster:
        yield cluster


async def add(cluster: RunningApp, key: str) -> grpc.StatusCode:
    async with grpc.aio.insecure_channel(cluster.listen["echo"]) as channel:
        unary = channel.unary_unary("/echo.v1.Echo/Unary", EchoRequest.SerializeToString, EchoReply.FromString)
        code: grpc.StatusCode = await unary(EchoRequest(key=key)).code()
        return code


def health(cluster: RunningApp) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{cluster.admin}/healthz", timeout=100) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def printed(cluster: RunningApp, *command: str) -> str:
    return CliRunner().invoke(main, [*command, "--admin", cluster.admin]).stdout


async def test_a_move_in_progress_is_shown_with_what_each_shard_has_moved_and_has_to_move(
    browser: Browser, tmp_path: Path
) -> None:
    """Keys whose turns do not end hold the change up, for as long as a drain: here longer than any test takes."""
    toml = echo(1, "drain_s = 600").replace("tests.echo.service:Echo", "tests.supervisor.admin.stuck_service:Stuck")
    with running(tmp_path, toml) as cluster:
        async with grpc.aio.insecure_channel(cluster.listen["echo"]) as channel:
            unary = channel.unary_unary("/echo.v1.Echo/Unary", EchoRequest.SerializeToString, EchoReply.FromString)
            stuck = [unary(EchoRequest(key=f"{key}", order="stay")) for key in range(HELD)]
            await eventually(lambda: json.loads(cluster.get("/turns?app=echo"))["held"] == HELD)
            async with opened(browser, cluster) as (page, console, _):
                scaling = asyncio.ensure_future(asyncio.to_thread(printed, cluster, "scale", "echo", "2"))
                row = page.locator(".change").get_by_role("row").filter(has_text="echo-0")
                # Not before its life has reported, which it does again and again.
                await expect(row.get_by_role("cell").nth(4)).to_have_text(re.compile("^[1-9]"))
                (life,) = [row for row in cluster.status()["apps"]["echo"]["change"]["lives"] if row["leaving"]]
                assert 0 < life["leaving"] < HELD
                await expect(row.get_by_role("cell")).to_have_text(["echo-0", "1", "0", "0", str(life["leaving"]), "0"])
                for call in stuck:
                    call.cancel()
                assert (await scaling).endswith("echo: 1 → 2 shards\n")
                await expect(page.locator(".change")).to_have_count(0)
                assert console == []


async def test_a_store_that_fails_is_seen_everywhere_and_so_is_its_return(
    browser: Browser, cluster: RunningApp
) -> None:
    for key in "abc":
        assert await add(cluster, key) is grpc.StatusCode.OK
    async with opened(browser, cluster) as (page, console, _):
        row = page.get_by_role("row").filter(has_text="sqlite")
        await expect(row).to_contain_text("works")
        await expect(row.get_by_role("cell").nth(3)).to_have_text("3")
        file = Path(cluster.log.parent) / "state/echo/echo-0.sqlite"
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert await add(cluster, "a") is grpc.StatusCode.UNAVAILABLE
            await expect(row).to_contain_text("fails")
            await eventually(lambda: health(cluster) == (503, "1/1 shards ready; the store of echo-0 fails\n"))
            durable = json.loads(await asyncio.to_thread(printed, cluster, "status", "--json"))["apps"]["echo"][
                "shards"
            ]
            assert (durable[0]["durable"]["failing"], durable[0]["durable"]["failures"]) == (True, {"commit": 1})
            assert "1 failed to commit, FAILS NOW" in printed(cluster, "status")
            screen = Console(width=200, file=io.StringIO(), record=True)
            screen.print(top.screen(json.loads(cluster.get("/snapshot")), {}, 200))
            assert "echo-0 keeps state in sqlite: 2 keys in memory" in screen.export_text()
        assert await add(cluster, "a") is grpc.StatusCode.OK
        await expect(row).to_contain_text("works")
        await eventually(lambda: health(cluster) == (200, "1/1 shards ready\n"))
        assert console == []
