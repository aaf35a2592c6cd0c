"""The admin page in a real Chromium: what it shows, and the commands that it sends."""

import asyncio
import contextlib
import json
import socket
import urllib.request
from collections.abc import Iterator
from typing import Any

import grpc.aio
import pytest
from playwright.async_api import Browser, expect

from tests.bounds import BOUND_S
from tests.conftest import Where
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import RunningApp, echo, eventually, http_request, running
from tests.supervisor.admin.opened_page import CONTRASTS, CUT_OFF, opened

pytestmark = pytest.mark.slow
MAX_CONNECTIONS = 20
Folders = pytest.TempPathFactory


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    settings = ("show_keys = true", f"max_connections_per_peer = {MAX_CONNECTIONS}")
    with running(tmp_path_factory.mktemp("page"), echo(2, *settings)) as cluster:
        yield cluster


async def call(cluster: RunningApp, key: str, times: int, **options: Any) -> None:
    async with grpc.aio.insecure_channel(cluster.listen["echo"]) as channel:
        stub = echo_pb2_grpc.EchoStub(channel)
        for _ in range(times):
            await stub.Unary(EchoRequest(key=key), timeout=BOUND_S, **options)


async def test_it_shows_shards_methods_charts_ring_hot_keys_and_traces_live(
    browser: Browser, cluster: RunningApp
) -> None:
    async with opened(browser, cluster) as (page, console, asked):
        shards = page.get_by_role("row").filter(has_text="echo-0")
        await expect(shards.first).to_contain_text("ready")
        await expect(page.get_by_text("2/2")).to_be_visible()
        await call(cluster, "the-hot-one", 30)
        # It comes by itself: nothing here loads the page again.
        method = page.get_by_role("button", name="echo.v1.Echo/Unary").first
        await expect(method).to_be_visible()
        await expect(page.get_by_role("img", name="calls a second of echo.v1.Echo/Unary")).to_be_visible()
        await expect(page.locator(".chart canvas").first).to_be_visible()
        await expect(page.get_by_role("cell", name="the-hot-one")).to_be_visible()
        shares = await page.locator(".ring .legend li").all_inner_texts()
        assert [line.split()[0] for line in shares[:2]] == ["echo-0", "echo-1"]
        assert 98 <= sum(int(line.split()[1]) for line in shares[:2]) <= 101
        assert console == []
        assert all(url.startswith(f"http://{cluster.admin}/") for url in asked)


async def test_it_shows_what_was_refused_and_dashes_for_methods_without_calls(
    browser: Browser, cluster: RunningApp
) -> None:
    await call(cluster, "k", 1)
    # grpcio closes a connection some time after its channel: while it is open, it counts beside those below.
    await eventually(lambda: cluster.metric("onelane_connections_open") == 0)
    refuse_connections(cluster, 3)
    await eventually(lambda: cluster.metric("onelane_connections_refused_total", onelane_reason="peer") == 3)
    await eventually(lambda: json.loads(cluster.get("/snapshot"))["refusals"])
    snapshot = json.loads(cluster.get("/snapshot"))
    for method in snapshot["apps"][0]["methods"]:
        # As ten seconds later.
        method["now"] = dict.fromkeys(method["now"], 0)
    events = f"event: snapshot\ndata: {json.dumps(snapshot)}\n\n"
    async with opened(browser, cluster, "/", events=events) as (page, console, _):
        card = page.locator(".card").filter(has=page.get_by_role("heading", name="Refused"))
        await expect(card.get_by_role("listitem")).to_have_text(["connection, peer: 3"])
        await expect(page.locator(".card.app .figures")).to_contain_text("\u2013 p99")
        await page.get_by_role("heading", name="echo").click()
        await expect(page.locator(".tiles")).to_contain_text("\u2013slowest p99")
        row = page.get_by_role("row").filter(has_text="echo.v1.Echo/Unary").first
        await expect(row.locator("td.n")).to_have_text(["\u2013"] * 5)
        assert console == []


def refuse_connections(cluster: RunningApp, count: int) -> None:
    """Have a shard refuse so many connections, because one peer has too many."""
    host, _, port = cluster.shards()[0]["address"].rpartition(":")
    with contextlib.ExitStack() as held:
        socks = [
            held.enter_context(socket.create_connection((host, int(port)))) for _ in range(MAX_CONNECTIONS + count)
        ]
        for sock in socks[MAX_CONNECTIONS:]:
            sock.settimeout(BOUND_S)
            with contextlib.suppress(ConnectionError):
                assert sock.recv(1) == b""


async def test_a_trace_is_drawn_as_a_waterfall_by_keyboard_alone(browser: Browser, cluster: RunningApp) -> None:
    await call(cluster, "traced", 3)
    async with opened(browser, cluster, "/#/traces") as (page, console, _):
        await page.get_by_role("region", name="traces").locator("tbody a").first.focus()
        await page.keyboard.press("Enter")
        trace = page.get_by_role("region", name="trace", exact=True)
        await expect(trace.locator(".waterfall .bar").first).to_be_visible()
        span = trace.locator(".waterfall button").first
        await span.focus()
        await page.keyboard.press("Enter")
        await expect(trace.locator(".waterfall .details")).to_contain_text("rpc.method")
        assert console == []


async def test_shortcuts_open_views_and_their_list_and_leave_a_field_alone(
    browser: Browser, cluster: RunningApp
) -> None:
    async with opened(browser, cluster, "/") as (page, console, _):
        await page.keyboard.press("j")
        await expect(page.get_by_role("heading", name="echo", level=2)).to_be_visible()
        await page.keyboard.press("g")
        await page.keyboard.press("t")
        await expect(page.get_by_role("heading", name="Recent traces")).to_be_visible()
        await expect(page.get_by_label("Method")).to_be_visible()
        await page.keyboard.press("/")
        await page.keyboard.type("g o?")
        await expect(page.get_by_label("Method")).to_have_value("g o?")
        await expect(page.get_by_role("dialog")).to_have_count(0)
        await page.get_by_role("heading", name="Recent traces").click()
        await page.keyboard.press("?")
        await expect(page.get_by_role("dialog")).to_contain_text("the overview")
        await page.get_by_label("Shortcuts of single keys are on").uncheck()
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("dialog")).to_have_count(0)
        await page.keyboard.press("?")
        await page.get_by_role("button", name="keyboard shortcuts").click()
        await expect(page.get_by_role("dialog")).to_have_count(1)
        assert console == []


VIEWS = ["#/", "#/app/echo", "#/traces", "#/console/echo"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_view_fits_a_phone_uncut_and_has_contrast_in_light_and_dark(
    browser: Browser, cluster: RunningApp, scheme: str
) -> None:
    await call(cluster, "a-key-that-is-rather-long-for-the-screen-of-a-phone", 3)
    size = {"width": 390, "height": 844}
    async with opened(browser, cluster, color_scheme=scheme, viewport=size) as (page, _, _):
        await expect(page.get_by_role("cell", name="a-key-that-is-rather-long", exact=False).first).to_be_visible()
        for view in VIEWS:
            await page.evaluate(f"location.hash = {view!r}")
            await expect(page.locator("main .card").first).to_be_visible()
            assert await page.evaluate("document.documentElement.scrollWidth") <= 390
            assert await page.evaluate(CUT_OFF) == []
            weakest = await page.evaluate(CONTRASTS)
            # What WCAG 2 asks of text at level AA.
            assert weakest["ratio"] >= 4.5, (view, weakest)


async def test_a_shard_is_drained_and_restarted_once_that_is_confirmed(browser: Browser, cluster: RunningApp) -> None:
    async with opened(browser, cluster) as (page, _, _):
        row = page.get_by_role("row").filter(has_text="echo-1").first
        before = cluster.shards()[1]["pid"]
        await page.get_by_role("button", name="Drain echo-1").click()
        await page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        await expect(row).to_contain_text("ready")
        await page.get_by_role("button", name="Drain echo-1").click()
        await page.get_by_role("dialog").get_by_role("button", name="Drain it").click()
        await expect(row).to_contain_text("drained")
        assert cluster.shards()[1]["state"] == "drained"
        await page.get_by_role("button", name="Restart echo-1").click()
        await page.get_by_role("dialog").get_by_role("button", name="Restart it").click()
        await expect(row).to_contain_text("ready")
        after = cluster.shards()[1]
    assert (after["state"], after["restarts"]) == ("ready", 0)
    assert after["pid"] != before
    await call(cluster, "after", 20)


async def test_a_page_that_has_lost_its_supervisor_shows_it(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with running(tmp_path_factory.mktemp("lost"), echo(1)) as cluster:
        async with opened(browser, cluster) as (page, _, _):
            await expect(page.get_by_role("status")).to_have_text("live")
            await asyncio.to_thread(cluster.stop)
            await expect(page.get_by_role("status")).to_contain_text("connection lost")


async def test_keys_are_shown_as_hashes_unless_the_app_shows_them(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running(tmp_path_factory.mktemp("hidden"), echo(1)) as cluster:
        await call(cluster, "a-secret-key", 5)
        await eventually(lambda: "hot_keys" in cluster.get("/snapshot") and '"key": "#' in cluster.get("/snapshot"))
        assert "a-secret-key" not in cluster.get("/snapshot") + cluster.get("/metrics") + cluster.get("/traces")


async def test_of_several_restart_requests_at_once_one_is_accepted(cluster: RunningApp) -> None:
    shard = cluster.shards()[0]
    before = shard["pid"]
    url = f"http://{cluster.admin}/shards/echo/0/restart"
    where = Where(cluster)
    key = where.key_of(shard["name"])
    # A call under way holds the restart up until all have asked.
    held = where.home(key).Misbehave(EchoRequest(key=key, order=f"wait {key}"), timeout=BOUND_S)
    await where.wait_begun(key)
    asked = [asyncio.to_thread(http_request, url, method="POST", **{"X-Onelane": "1"}) for _ in range(3)]
    statuses = sorted(status for status, _ in await asyncio.gather(*asked))
    held.cancel()
    assert statuses == [200, 409, 409]
    await eventually(lambda: cluster.shards()[0]["pid"] != before and cluster.shards()[0]["state"] == "ready")
    after = cluster.shards()[0]["pid"]
    await call(cluster, "k", 5)
    assert (cluster.shards()[0]["pid"], cluster.shards()[0]["restarts"]) == (after, 0)


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("/shards/echo/7/drain", 404, "there is no shard 7 of an app 'echo'"),
        ("/shards/other/0/drain", 404, "there is no shard 0 of an app 'other'"),
        ("/traces/ffff", 404, "there is no such trace"),
    ],
)
def test_an_unknown_shard_or_trace_is_not_found(cluster: RunningApp, path: str, status: int, reason: str) -> None:
    method = "POST" if "drain" in path else "GET"
    actual_status, text = http_request(f"http://{cluster.admin}{path}", method=method, **{"X-Onelane": "1"})
    assert (actual_status, reason in text) == (status, True)


def test_a_browser_asks_whether_a_script_has_changed(cluster: RunningApp) -> None:
    with urllib.request.urlopen(f"http://{cluster.admin}/static/page.js", timeout=BOUND_S) as answer:
        assert answer.headers["Cache-Control"] == "no-cache"
        assert answer.headers["ETag"]


async def test_a_token_in_the_address_opens_the_page_and_leaves_the_address(
    browser: Browser,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    token = "a-long-secret"
    with running(tmp_path_factory.mktemp("cookie"), echo(1), ONELANE_ADMIN_TOKEN=token) as cluster:
        async with opened(browser, cluster, f"/?token={token}") as (page, _, _):
            await expect(page.get_by_role("status")).to_have_text("live")
            assert page.url == f"http://{cluster.admin}/"
