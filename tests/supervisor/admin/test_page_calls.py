"""Calls between apps on the page, and names that would be markup, in a real Chromium."""

import copy
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from playwright.async_api import Browser, expect

from services.examples.two_apps.v1 import shop_pb2, shop_pb2_grpc
from tests.bounds import BOUND_S
from tests.running_app import NEVER_LATE, RunningApp, eventually, running
from tests.supervisor.admin.opened_page import CUT_OFF, blank, load, opened

pytestmark = pytest.mark.slow
HOSTILE = "<img src=x onerror=\"window.hit='{}'\">"
SOLD_OUT_AFTER = 3
ENDS_OF_ARROWS = """() => {
  const boxes = [...document.querySelectorAll(".arrow path")].map((path) => path.getBoundingClientRect());
  return boxes.filter((box) => box.left < 0 || box.right > 390).map((box) => [box.left, box.right]);
}"""
BUY = "examples.two_apps.v1.Shop/Buy"


def app(name: str) -> str:
    service = f"services.examples.two_apps.{name}:{name.title()}"
    settings = ('listen = "127.0.0.1:0"', "shards = 1", "show_runtime_calls = true", NEVER_LATE)
    return "\n".join([f"[apps.{name}]", f'services = ["{service}"]', *settings, ""])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    with running(tmp_path_factory.mktemp("calls"), app("shop") + app("stock")) as cluster:
        yield cluster


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[RunningApp]:
    """Apps that have called nobody yet."""
    with running(tmp_path, app("shop") + app("stock")) as apps:
        yield apps


async def buy(cluster: RunningApp, item: str, times: int) -> list[grpc.StatusCode]:
    async with grpc.aio.insecure_channel(cluster.listen["shop"]) as channel:
        stub = shop_pb2_grpc.ShopStub(channel)
        return [
            await stub.Buy(shop_pb2.BuyRequest(customer="ann", item=item), timeout=BOUND_S).code() for _ in range(times)
        ]


async def with_methods(cluster: RunningApp) -> dict[str, Any]:
    """A snapshot in which each app has a method: one of it has been called."""
    await buy(cluster, "pears", 1)
    await eventually(lambda: all(row["methods"] for row in json.loads(cluster.get("/snapshot"))["apps"]))
    return dict(json.loads(cluster.get("/snapshot")))


async def check_health(cluster: RunningApp) -> None:
    async with grpc.aio.insecure_channel(cluster.listen["stock"]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=BOUND_S)


def calls(cluster: RunningApp) -> list[dict[str, Any]]:
    edges: list[dict[str, Any]] = json.loads(cluster.get("/snapshot"))["calls"]
    return edges


def traces(cluster: RunningApp) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(cluster.get("/traces"))["traces"]
    return rows


def failed_buys(cluster: RunningApp) -> list[dict[str, Any]]:
    return [row for row in traces(cluster) if row["name"] == BUY and row["errors"]]


async def served_as(page: Any, snapshot: dict[str, Any], *, new_calls: int = 0, is_new: bool = True) -> None:
    """Have the page get this snapshot, again and again. new_calls: of each arrow, before each; half of them fail.

    is_new: the page is loaded for it.
    """
    rounds = itertools.count(1)

    async def answer(route: Any) -> None:
        more = next(rounds) * new_calls
        edges = [edge | {"calls": edge["calls"] + more, "errors": more // 2} for edge in snapshot["calls"]]
        events = f"retry: 300\nevent: snapshot\ndata: {json.dumps(snapshot | {'calls': edges})}\n\n"
        await route.fulfill(content_type="text/event-stream", body=events)

    await page.route("**/events", answer)
    if is_new:
        url = page.url
        await blank(page)
        await load(page, url)


async def test_the_overview_shows_who_calls_whom_with_rates_and_errors(browser: Browser, fresh: RunningApp) -> None:
    async with opened(browser, fresh, "/") as (page, console, _):
        await expect(page.get_by_text("No app has called another one yet.")).to_be_visible()
        await buy(fresh, "apples", SOLD_OUT_AFTER + 2)
        row = page.get_by_role("row").filter(has_text="shop → stock")
        await expect(row.get_by_role("cell").nth(3)).to_have_text(str(SOLD_OUT_AFTER + 2))
        assert calls(fresh) == [{"from": "shop", "to": "stock", "calls": SOLD_OUT_AFTER + 2, "errors": 2}]
        await expect(page.locator(".graph .arrow")).to_have_count(1)
        await served_as(page, json.loads(fresh.get("/snapshot")), new_calls=20)
        await expect(row.get_by_role("cell").nth(1)).to_have_text(re.compile(r"[1-9]\d*|\d\.\d+"))
        await expect(row.get_by_role("cell").nth(2)).to_have_class(re.compile("bad"))
        await expect(page.locator(".graph .arrow.failing text")).to_contain_text("errors/s")
        await page.locator(".graph").get_by_role("link", name="stock").click()
        await expect(page.get_by_role("heading", name="stock", level=2)).to_be_visible()
        assert console == []


async def test_names_that_are_markup_are_shown_as_text(browser: Browser, cluster: RunningApp) -> None:
    snapshot = await with_methods(cluster)
    hostile: dict[str, Any] = copy.deepcopy(snapshot)
    shop = hostile["apps"][0]
    shop["name"], shop["listen"] = HOSTILE.format("app"), HOSTILE.format("listen")
    shop["methods"][0]["name"] = HOSTILE.format("method")
    shop["hot_keys"] = [{"key": HOSTILE.format("key"), "calls": 1, "error": 0, "shard": HOSTILE.format("shard")}]
    shop["shards"][0] |= {"name": HOSTILE.format("shard"), "state": HOSTILE.format("state")}
    hostile["calls"] = [{"from": shop["name"], "to": HOSTILE.format("peer"), "calls": 1, "errors": 1}]
    hostile["losses"] = [{"what": HOSTILE.format("loss"), "count": 1}]
    async with opened(browser, cluster, "/") as (page, _, _):
        await served_as(page, hostile)
        card = page.locator("a.app").filter(has_text=shop["name"])
        await expect(card).to_contain_text(HOSTILE.format("state"))
        await expect(page.locator(".graph")).to_contain_text(HOSTILE.format("peer"))
        await card.click()
        await expect(page.get_by_role("heading", level=2)).to_contain_text(shop["name"])
        await expect(page.get_by_role("button", name=HOSTILE.format("method"))).to_be_visible()
        assert await page.evaluate("[window.hit ?? null, document.querySelectorAll('img').length]") == [None, 0]


async def test_an_app_that_is_gone_leaves_a_message_and_the_way_to_the_others(
    browser: Browser, cluster: RunningApp
) -> None:
    snapshot = json.loads(cluster.get("/snapshot"))
    async with opened(browser, cluster, "/#/app/shop") as (page, console, _):
        await expect(page.get_by_role("heading", name="shop", level=2)).to_be_visible()
        await served_as(page, snapshot | {"apps": snapshot["apps"][1:], "calls": []})
        await expect(page.get_by_role("alert")).to_contain_text("There is no app shop now.")
        await page.get_by_role("link", name="All apps").click()
        await expect(page.get_by_role("heading", name="stock")).to_be_visible()
        assert console == []


async def test_a_page_whose_stream_is_refused_asks_again_and_shows_what_the_next_supervisor_counts(
    browser: Browser, cluster: RunningApp
) -> None:
    snapshot = json.loads(cluster.get("/snapshot"))
    edge = {"from": "shop", "to": "stock", "errors": 0}
    async with opened(browser, cluster, "/") as (page, _, _):
        await served_as(page, snapshot | {"calls": [edge | {"calls": 5000}]})
        row = page.get_by_role("row").filter(has_text="shop → stock")
        await expect(row.get_by_role("cell").nth(3)).to_have_text("5000")
        # The route that was laid last counts. Without any in between, the page would have the true stream, which stays.
        await page.route("**/events", lambda route: route.fulfill(status=503, body="32 pages are open already"))
        await expect(page.get_by_role("status").first).to_contain_text("connection lost")
        # An error is no stream, after which a browser would connect again by itself.
        async with page.expect_response("**/events"):
            pass
        await served_as(page, snapshot | {"calls": [edge | {"calls": 7}]}, is_new=False)
        await expect(row.get_by_role("cell").nth(3)).to_have_text("7")
        await expect(row.get_by_role("cell").nth(1)).to_have_text("0")


async def test_twelve_apps_of_32_shards_and_their_arrows_fit_a_phone_uncut(
    browser: Browser, cluster: RunningApp
) -> None:
    snapshot = await with_methods(cluster)
    names = [f"app-{'of-a-long-name-' * (index % 3)}{index}" for index in range(12)]
    shards = [snapshot["apps"][0]["shards"][0] | {"name": f"shard-{index}", "index": index} for index in range(32)]
    ring = snapshot["apps"][0]["ring"] | {"shares": [1 / 32] * 32, "slices": [at % 32 for at in range(360)]}
    apps = [snapshot["apps"][0] | {"name": name, "shards": shards, "ring": ring} for name in names]
    pairs = {(a, b) for a in range(12) for b in ((2 * a + 1) % 12, (3 * a + 2) % 12) if a < b} | {(5, 1)}
    edges = [{"from": names[a], "to": names[b], "calls": 10_000 * a, "errors": a % 2} for a, b in sorted(pairs)]
    size = {"width": 390, "height": 844}
    async with opened(browser, cluster, "/", viewport=size) as (page, console, _):
        await served_as(page, snapshot | {"apps": apps, "calls": edges})
        await expect(page.locator("a.app")).to_have_count(12)
        await expect(page.locator(".arrow")).to_have_count(len(edges))
        assert await page.evaluate(ENDS_OF_ARROWS) == []
        for view in ("#/", f"#/app/{names[2]}"):
            await page.evaluate(f"location.hash = {view!r}")
            await expect(page.locator("table tbody tr").first).to_be_visible()
            assert await page.evaluate(CUT_OFF) == []
        rows = page.get_by_role("table", name="shards").locator("tbody tr")
        await expect(rows).to_have_count(8)
        await page.get_by_role("button", name="Show all 32 shards").click()
        await expect(rows).to_have_count(32)
        assert await page.evaluate(CUT_OFF) == []
        assert console == []


async def test_traces_are_searched_by_method_status_duration_shard_and_id(
    browser: Browser, cluster: RunningApp
) -> None:
    await buy(cluster, "figs", SOLD_OUT_AFTER + 1)
    await check_health(cluster)
    await eventually(lambda: any(row["name"] == "grpc.health.v1.Health/Check" for row in traces(cluster)))
    await eventually(lambda: failed_buys(cluster))
    failed = failed_buys(cluster)[0]
    async with opened(browser, cluster, "/#/traces") as (page, console, _):
        rows = page.get_by_role("table", name="traces").locator("tbody tr")
        await expect(rows.filter(has_text=BUY).first).to_be_visible()
        # The runtime's own, once asked for.
        await expect(rows.filter(has_text="grpc.health.v1.Health/Check")).to_have_count(0)
        await page.get_by_label("The runtime's own too").check()
        await expect(rows.filter(has_text="grpc.health.v1.Health/Check").first).to_be_visible()
        # A method anywhere in the trace.
        await page.get_by_label("Method").fill("stock/take")
        await expect(rows.filter(has_text="grpc.health.v1.Health/Check")).to_have_count(0)
        await page.get_by_label("Status").select_option("errors")
        await page.get_by_label("Trace id").fill(failed["trace_id"][:12])
        await expect(rows).to_have_count(1)
        await expect(rows.first).to_contain_text("shop-0, stock-0")
        await page.get_by_label("Shard").select_option("stock-0")
        await expect(rows).to_have_count(1)
        await page.get_by_label("Slower than, ms").fill("60000")
        await expect(page.get_by_text("No trace matches.")).to_be_visible()
        # The search is in the URL, also after a look at a trace.
        await page.get_by_label("Slower than, ms").fill("")
        await rows.first.get_by_role("link").click()
        await page.get_by_role("link", name="All traces").click()
        await expect(rows).to_have_count(1)
        assert failed["trace_id"][:12] in page.url
        await page.get_by_role("link", name="Traces", exact=True).click()
        await expect(page.get_by_label("Trace id")).to_have_value("")
        assert console == []


async def test_of_ten_thousand_traces_the_newest_hundred_are_drawn(browser: Browser, cluster: RunningApp) -> None:
    await buy(cluster, "plums", 1)
    await eventually(lambda: traces(cluster))
    row = traces(cluster)[0] | {"is_runtime": False, "name": HOSTILE.format("trace")}
    many = json.dumps({"traces": [row | {"trace_id": f"{index:032x}"} for index in range(10_000)]})
    async with opened(browser, cluster, "/") as (page, console, _):
        await page.route("**/traces", lambda route: route.fulfill(content_type="application/json", body=many))
        await page.get_by_role("link", name="Traces").click()
        await expect(page.get_by_role("heading", name="Recent traces")).to_contain_text("10000 of 10000")
        await expect(page.get_by_role("table", name="traces").locator("tbody tr")).to_have_count(100)
        assert await page.evaluate("window.hit ?? null") is None
        assert console == []
