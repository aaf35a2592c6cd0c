"""The supervisor's page, in a real Chromium: what is there to see, and what may be done from it."""

import asyncio
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from tests import tools
from tests.conftest import Where
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import Cluster, echo, eventually, running

pytestmark = pytest.mark.slow
Opened = tuple[Page, list[str], list[str]]
Folders = pytest.TempPathFactory
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("page"), echo(2, "show_keys = true")) as made:
        yield made


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        made = await playwright.chromium.launch(executable_path=tools.chromium(), args=ARGUMENTS)
        yield made
        await made.close()


@asynccontextmanager
async def opened(browser: Browser, cluster: Cluster, path: str = "/", **settings: Any) -> AsyncIterator[Opened]:
    """The page, what its console has said, and what it has asked for."""
    context = await browser.new_context(**settings)
    page = await context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    await page.goto(f"http://{cluster.admin}{path}")
    await expect(page.get_by_role("heading", name="echo", exact=False).first).to_be_visible()
    yield page, said, asked
    await context.close()


async def call(cluster: Cluster, key: str, times: int, **more: Any) -> None:
    async with grpc.aio.insecure_channel(cluster.listen["echo"]) as channel:
        stub = echo_pb2_grpc.EchoStub(channel)
        for _ in range(times):
            await stub.Unary(EchoRequest(key=key), timeout=10, **more)


async def test_it_shows_shards_methods_charts_ring_hot_keys_and_traces_live(browser: Browser, cluster: Cluster) -> None:
    async with opened(browser, cluster) as (page, said, asked):
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
        assert said == []
        assert all(url.startswith(f"http://{cluster.admin}/") for url in asked)


async def test_a_trace_is_drawn_as_a_waterfall_by_keyboard_alone(browser: Browser, cluster: Cluster) -> None:
    await call(cluster, "traced", 3)
    async with opened(browser, cluster) as (page, said, _):
        traces = page.get_by_role("region", name="traces")
        first = traces.locator("tbody button").first
        await first.focus()
        await page.keyboard.press("Enter")
        await expect(traces.locator(".waterfall .bar").first).to_be_visible()
        span = traces.locator(".waterfall button").first
        await span.focus()
        await page.keyboard.press("Enter")
        await expect(traces.locator(".waterfall .details")).to_contain_text("rpc.method")
        assert said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_fits_a_phone_and_has_contrast_in_light_and_dark(
    browser: Browser, cluster: Cluster, scheme: str
) -> None:
    size = {"width": 390, "height": 844}
    async with opened(browser, cluster, color_scheme=scheme, viewport=size) as (page, _, _):
        assert await page.evaluate("document.documentElement.scrollWidth") <= 390
        weakest = await page.evaluate(CONTRASTS)
        # What WCAG 2 asks of text at level AA.
        assert weakest["ratio"] >= 4.5, weakest


CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const part = (c) => ((c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const found = rgb(getComputedStyle(node).backgroundColor);
      if (found[3] === 255) return found;
    }
    return [255, 255, 255, 255];
  };
  let weakest = { ratio: 99 };
  for (const node of document.querySelectorAll("h1, h2, h3, small, td, th, button:not(:disabled), b, span, p, li")) {
    if (!node.innerText?.trim() || node.classList.contains("inside")) continue;
    const [one, other] = [light(rgb(getComputedStyle(node).color)), light(ground(node))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < weakest.ratio) weakest = { ratio, what: node.tagName + " " + node.className + " " + node.innerText };
  }
  return weakest;
}"""


async def test_a_shard_is_drained_and_restarted_once_that_is_confirmed(browser: Browser, cluster: Cluster) -> None:
    async with opened(browser, cluster) as (page, _, _):
        row = page.get_by_role("row").filter(has_text="echo-1").first
        before = cluster.shards()[1]["pid"]
        await page.get_by_role("button", name="Drain echo-1").click()
        await page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
        await expect(row).to_contain_text("ready")
        await page.get_by_role("button", name="Drain echo-1").click()
        await page.get_by_role("dialog").get_by_role("button", name="Drain it").click()
        await expect(row).to_contain_text("drained", timeout=15_000)
        assert cluster.shards()[1]["state"] == "drained"
        await page.get_by_role("button", name="Restart echo-1").click()
        await page.get_by_role("dialog").get_by_role("button", name="Restart it").click()
        await expect(row).to_contain_text("ready", timeout=15_000)
        after = cluster.shards()[1]
    assert (after["state"], after["restarts"]) == ("ready", 0)
    assert after["pid"] != before
    await call(cluster, "after", 20)


async def test_a_page_that_has_lost_its_supervisor_says_so(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with running(tmp_path_factory.mktemp("lost"), echo(1)) as made:
        async with opened(browser, made) as (page, _, _):
            await expect(page.get_by_role("status")).to_have_text("live")
            await asyncio.to_thread(made.stop)
            await expect(page.get_by_role("status")).to_contain_text("connection lost")


async def test_keys_are_shown_as_hashes_unless_the_app_shows_them(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running(tmp_path_factory.mktemp("hidden"), echo(1)) as made:
        await call(made, "a-secret-key", 5)
        await eventually(lambda: "hot_keys" in made.get("/snapshot") and '"key": "#' in made.get("/snapshot"))
        assert "a-secret-key" not in made.get("/snapshot") + made.get("/metrics") + made.get("/traces")


def ask(url: str, *, method: str = "GET", **headers: str) -> tuple[int, str]:
    """Status and text; headers by name with underscores."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, method=method, headers=named)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "8.8.8.8:80"])
def test_a_page_from_elsewhere_cannot_use_a_name_of_its_own_for_us(cluster: Cluster, host: str) -> None:
    for path in ("/", "/status", "/snapshot", "/traces", "/metrics"):
        status, text = ask(f"http://{cluster.admin}{path}", Host=host)
        assert status == 403
        assert "is no name of the loopback address" in text


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]:9"])
def test_a_name_of_the_loopback_address_is_served(cluster: Cluster, host: str) -> None:
    assert ask(f"http://{cluster.admin}/healthz", Host=host)[0] == 200


@pytest.mark.parametrize(
    ("headers", "told"),
    [({}, "needs the header X-Onelane"), ({"X-Onelane": "1", "Origin": "http://evil.example"}, "is not taken")],
)
def test_a_command_from_elsewhere_is_refused(cluster: Cluster, headers: dict[str, str], told: str) -> None:
    for path in ("/shards/echo/0/drain", "/shards/echo/0/restart", "/restart", "/reload"):
        status, text = ask(f"http://{cluster.admin}{path}", method="POST", **headers)
        assert (status, told in text) == (403, True)
    assert [shard["state"] for shard in cluster.shards()] == ["ready", "ready"]


async def test_who_asks_twice_at_once_restarts_a_shard_once(cluster: Cluster) -> None:
    shard = cluster.shards()[0]
    before = shard["pid"]
    url = f"http://{cluster.admin}/shards/echo/0/restart"
    where = Where(cluster)
    key = next(key for key in map(str, range(99)) if where.owner_of(key) == shard["name"])
    # A call under way holds the restart up until all have asked.
    held = where.home(key).Hold(EchoRequest(key=key), timeout=30)
    await eventually(lambda: cluster.metric("onelane_calls_in_flight") == 1)
    asked = [asyncio.to_thread(ask, url, method="POST", **{"X-Onelane": "1"}) for _ in range(3)]
    found = sorted(status for status, _ in await asyncio.gather(*asked))
    held.cancel()
    assert found == [200, 409, 409]
    await eventually(lambda: cluster.shards()[0]["pid"] != before and cluster.shards()[0]["state"] == "ready")
    after = cluster.shards()[0]["pid"]
    await call(cluster, "k", 5)
    assert (cluster.shards()[0]["pid"], cluster.shards()[0]["restarts"]) == (after, 0)


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        ("/shards/echo/7/drain", 404, "there is no shard 7 of an app 'echo'"),
        ("/shards/other/0/drain", 404, "there is no shard 0 of an app 'other'"),
        ("/traces/ffff", 404, "there is no such trace"),
    ],
)
def test_what_does_not_exist_is_told_by_name(cluster: Cluster, path: str, status: int, told: str) -> None:
    method = "POST" if "drain" in path else "GET"
    found, text = ask(f"http://{cluster.admin}{path}", method=method, **{"X-Onelane": "1"})
    assert (found, told in text) == (status, True)


def test_with_a_token_only_who_shows_it_is_served(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running(tmp_path_factory.mktemp("token"), echo(1), ONELANE_ADMIN_TOKEN="a-long-secret") as made:
        url = f"http://{made.admin}"
        assert ask(f"{url}/")[0] == ask(f"{url}/status", Authorization="Bearer wrong")[0] == 401
        # Bytes that are no text are no token either.
        assert ask(f"{url}/status", Authorization="Bearer \xff\xfe")[0] == 401
        assert ask(f"{url}/status", Authorization="Bearer a-long-secret")[0] == 200
        assert ask(f"{url}/", Cookie="onelane-token=a-long-secret")[0] == 200
        # What tells no secrets stays open, for probes and scrapes.
        assert ask(f"{url}/healthz")[0] == ask(f"{url}/metrics")[0] == 200


async def test_a_token_in_the_address_opens_the_page_and_leaves_the_address(
    browser: Browser,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    token = "a-long-secret"
    with running(tmp_path_factory.mktemp("cookie"), echo(1), ONELANE_ADMIN_TOKEN=token) as made:
        async with opened(browser, made, f"/?token={token}") as (page, _, _):
            await expect(page.get_by_role("status")).to_have_text("live")
            assert page.url == f"http://{made.admin}/"


def test_beyond_loopback_and_without_a_token_only_metrics_and_health_are_served(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with running(tmp_path_factory.mktemp("open"), echo(1), "--admin", "0.0.0.0:0") as made:
        url = f"http://127.0.0.1:{made.admin.rpartition(':')[2]}"
        assert ask(f"{url}/metrics")[0] == ask(f"{url}/healthz")[0] == 200
        for path in ("/", "/status", "/snapshot", "/events", "/traces", "/static/page.js"):
            status, text = ask(f"{url}{path}")
            assert (status, "set ONELANE_ADMIN_TOKEN" in text) == (403, True)
