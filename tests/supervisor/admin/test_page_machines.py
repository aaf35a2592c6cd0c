"""The view of machines, on snapshots that a test makes; and real machines, on it and in status, top and metrics."""

import asyncio
import io
import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Any

import pytest
from click.testing import CliRunner
from onelane.cli import top
from onelane.cli.main import main
from playwright.async_api import Browser, Page, expect
from rich.console import Console

from tests.cli.test_cluster_text import CHANGE, cluster, machine
from tests.etcd import EtcdServer, etcd
from tests.running_app import RunningApp, echo, eventually, running
from tests.supervisor.admin.opened_page import CONTRASTS, CUT_OFF, opened
from tests.supervisor.cluster_variables import environment_of, settings_of

pytestmark = pytest.mark.slow
Folders = pytest.TempPathFactory


@pytest.fixture(scope="module")
def alone(tmp_path_factory: Folders) -> Iterator[RunningApp]:
    """A machine of no cluster."""
    with running(tmp_path_factory.mktemp("alone"), echo(1)) as app:
        yield app


@asynccontextmanager
async def shown(
    browser: Browser, app: RunningApp, rows: dict[str, Any], path: str = "/#/machines", **settings: Any
) -> AsyncIterator[tuple[Page, list[str], list[str]]]:
    """The page of a machine whose snapshot has a cluster that a test has made."""
    snapshot = json.loads(app.get("/snapshot")) | {"cluster": rows}
    events = f"retry: 600000\nevent: snapshot\ndata: {json.dumps(snapshot)}\n\n"
    async with opened(browser, app, path, events=events, **settings) as (page, console, asked):
        await expect(page.locator("main .card").first).to_be_visible()
        yield page, console, asked


EVERY_STATE = [
    machine("a", lease_left_s=3.2, admin="http://10.0.0.11:9464"),
    machine("b", admin="https://10.0.0.12:9464"),
    machine("c", "missing"),
    machine("d", "gone", apps={}, lease=None),
    machine("e", "forgotten"),
    machine("f", "unreadable", apps={}, fault="it runs onelane 7.0, whose records (version 9) are newer"),
    machine("g", admin="javascript:alert(1)"),
]
TROUBLED = cluster(*EVERY_STATE, change=CHANGE, unserved=[{"name": "c/lobby-0", "machine": "c"}], fault="")


async def test_machines_are_listed_with_their_state_processes_and_placements(
    browser: Browser, alone: RunningApp
) -> None:
    async with shown(browser, alone, TROUBLED) as (page, console, asked):
        table = page.get_by_role("table", name="machines")
        states = await table.locator("tbody tr td:nth-child(2)").all_inner_texts()
        assert states == ["joined", "joined", "missing", "gone", "forgotten", "unreadable", "joined"]
        await expect(table.get_by_role("row").filter(has_text="unreadable")).to_contain_text("it runs onelane 7.0")
        await expect(page.get_by_role("heading", name="Machines", level=2)).to_contain_text("told by a · b coordinates")
        # The page of another machine, where its URL opens one, and where it is not this one.
        await expect(table.get_by_role("link")).to_have_text(["page of b"])
        placements = page.get_by_role("table", name="placements")
        await expect(placements).to_contain_text("epoch 7 → 8: d/lobby-0 joins; waits for a/lobby-0, odd on c")
        await expect(placements).to_contain_text("c/lobby-0")
        await expect(page.get_by_role("table", name="processes").locator("tbody tr")).to_have_count(5)
        assert console == []
        assert all(url.startswith(f"http://{alone.admin}/") for url in asked)


async def test_many_machines_are_a_short_list_that_begins_with_those_in_trouble(
    browser: Browser, alone: RunningApp
) -> None:
    rows = cluster(*(machine(f"m{number:03}", lease=f"{number}", advertise="h") for number in range(100)))
    rows["machines"][70]["state"] = "missing"
    rows["machine"] = "m000"
    async with shown(browser, alone, rows) as (page, _, _):
        body = page.get_by_role("table", name="machines").locator("tbody tr")
        await expect(body).to_have_count(8)
        await expect(body.first).to_contain_text("m070")
        await page.get_by_role("button", name="Show all 100 machines").click()
        await expect(body).to_have_count(100)


@pytest.mark.parametrize(
    ("own", "fault", "alert"),
    [
        ("cut off", "etcd does not answer", "a is cut off: etcd has answered last 0.8 s ago (etcd does not answer)"),
        ("joining", "refused", "a has no lease (refused): it serves no key"),
        ("joined", "timeout", "The lease of a was not renewed (timeout): in 3.2 s it serves no key."),
    ],
)
async def test_what_is_wrong_with_this_machine_is_said_first_and_on_the_overview(
    browser: Browser, alone: RunningApp, own: str, fault: str, alert: str
) -> None:
    rows = cluster(machine("a", own), machine("b", "missing"))
    rows["lease"]["fault"] = fault
    async with shown(browser, alone, rows) as (page, console, _):
        await expect(page.get_by_role("alert")).to_contain_text(alert)
        await page.evaluate("location.hash = '#/'")
        await expect(page.get_by_role("alert")).to_contain_text(alert)
        await expect(page.get_by_role("alert")).to_contain_text("1 machine missing.")
        await page.get_by_role("alert").get_by_role("link", name="Machines").click()
        await expect(page.get_by_role("heading", name="All machines")).to_be_visible()
        assert console == []


@pytest.mark.parametrize("path", ["/#/machines", "/#/"])
async def test_a_snapshot_that_cannot_be_drawn_is_told_and_the_next_one_is_drawn(
    browser: Browser, alone: RunningApp, path: str
) -> None:
    first = json.loads(alone.get("/snapshot"))
    bad = cluster(machine("a", "cut off"))
    bad["lease"]["renewed_s_ago"] = None
    events = [
        f"event: snapshot\ndata: {json.dumps(first | {'cluster': rows})}\n\n"
        for rows in (cluster(machine("a")), bad, cluster(machine("a"), machine("b")))
    ]
    async with opened(browser, alone, path, events="retry: 600000\n" + "".join(events[:2])) as (page, console, _):
        await expect(page.get_by_role("alert")).to_contain_text("cannot be drawn (Cannot read properties of null")
        assert len(console) == 1
    async with opened(browser, alone, path, events="retry: 600000\n" + "".join(events)) as (page, _, _):
        await expect(page.get_by_role("link", name="Machines")).to_be_visible()
        await page.evaluate("location.hash = '#/machines'")
        await expect(page.get_by_role("table", name="machines").locator("tbody tr")).to_have_count(2)
        await expect(page.get_by_role("alert")).to_have_count(0)


async def test_the_view_is_reached_by_keyboard(browser: Browser, alone: RunningApp) -> None:
    async with shown(browser, alone, cluster(machine("a")), "/#/") as (page, _, _):
        await expect(page.get_by_role("alert")).to_have_count(0)
        await page.keyboard.press("g")
        await page.keyboard.press("m")
        await expect(page.get_by_role("heading", name="All machines")).to_be_visible()
        await expect(page.get_by_role("link", name="Machines")).to_have_attribute("aria-current", "page")
        await page.keyboard.press("?")
        await expect(page.get_by_role("dialog")).to_contain_text("the machines of the cluster")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_view_fits_a_phone_uncut_and_has_contrast(browser: Browser, alone: RunningApp, scheme: str) -> None:
    rows = cluster(*EVERY_STATE, machine("machine-with-a-rather-long-name.example.internal"), change=CHANGE)
    rows["machines"][0] |= {"state": "cut off", "fault": "etcd at http://10.0.0.5:2379 does not answer: timeout"}
    rows["lease"]["fault"] = rows["machines"][0]["fault"]
    size = {"width": 390, "height": 844}
    async with shown(browser, alone, rows, color_scheme=scheme, viewport=size) as (page, _, _):
        for view in ("#/machines", "#/"):
            await page.evaluate(f"location.hash = {view!r}")
            await expect(page.get_by_role("alert")).to_be_visible()
            assert await page.evaluate("document.documentElement.scrollWidth") <= 390
            assert await page.evaluate(CUT_OFF) == []
            weakest = await page.evaluate(CONTRASTS)
            assert weakest["ratio"] >= 4.5, (view, weakest)


async def test_without_a_cluster_there_is_nothing_of_machines(browser: Browser, alone: RunningApp) -> None:
    assert set(alone.status()) == {"apps", "supervisor"}
    assert "cluster" not in json.loads(alone.get("/snapshot"))
    assert "onelane_machine" not in alone.get("/metrics")
    async with opened(browser, alone, "/") as (page, console, _):
        await expect(page.get_by_role("link", name="Traces")).to_be_visible()
        await expect(page.get_by_role("link", name="Machines")).to_have_count(0)
        await page.keyboard.press("g")
        await page.keyboard.press("m")
        await page.keyboard.press("?")
        await expect(page.get_by_role("dialog")).not_to_contain_text("machines")
        await expect(page.get_by_role("heading", name="Apps")).to_be_visible()
        await page.goto(f"http://{alone.admin}/#/machines")
        await expect(page.get_by_role("alert")).to_contain_text("part of no cluster")
        assert console == []


# Real machines


def joins(server: EtcdServer, folder: Any, name: str, **environment: str) -> Any:
    """An `onelane up` of an echo app on a machine of this cluster."""
    (folder / name).mkdir()
    settings = settings_of(server, machine=name, lease_s=6)
    return running(folder / name, echo(1), **environment_of(settings), **environment)


def states(app: RunningApp) -> dict[str, str]:
    return {row["name"]: row["state"] for row in app.status()["cluster"]["machines"]}


def has_two_owners(app: RunningApp) -> bool:
    return bool(app.status()["cluster"]["apps"]["echo"]["shards"] == 2)


def counts_two_machines(app: RunningApp) -> bool:
    return app.metric("onelane_cluster_machines", onelane_state="joined") == 2


def counts_a_renewal(app: RunningApp) -> bool:
    return app.metric("onelane_cluster_requests_total", onelane_operation="lease/keepalive") >= 1


def printed(app: RunningApp, *command: str) -> str:
    return CliRunner().invoke(main, [*command, "--admin", app.admin]).stdout


async def test_real_machines_are_seen_from_each_as_one_dies_and_one_is_cut_off(
    browser: Browser, tmp_path_factory: Folders
) -> None:
    folder = tmp_path_factory.mktemp("machines")
    with ExitStack() as stack:
        server = stack.enter_context(etcd("--election-timeout=4000"))
        a, b = (stack.enter_context(joins(server, folder, name)) for name in "ab")
        for app, name in ((a, "a"), (b, "b")):
            await eventually(partial(has_two_owners, app))
            rows = app.status()["cluster"]
            assert (rows["machine"], rows["coordinator"]) == (name, "a")
            assert [row["state"] for row in rows["machines"]] == ["joined", "joined"]
            assert [row["name"] for machine in rows["machines"] for row in machine["apps"]["echo"]] == [
                "a/echo-0",
                "b/echo-0",
            ]
            await eventually(partial(counts_two_machines, app))
        await eventually(partial(counts_a_renewal, a))
        text = printed(b, "status")
        assert "cluster arena  told by b  a coordinates" in text
        assert json.loads(printed(a, "status", "--json"))["cluster"]["machine"] == "a"
        screen = Console(width=200, file=io.StringIO(), record=True)
        screen.print(top.screen(json.loads(a.get("/snapshot")), {}, 200))
        assert "cluster arena  told by a  a coordinates" in screen.export_text()
        async with opened(browser, a, "/#/machines") as (page, console, _):
            table = page.get_by_role("table", name="machines")
            await expect(table.locator("tbody td:nth-child(2)")).to_have_text(["joined", "joined"])
            await asyncio.to_thread(b.stop, by=signal.SIGKILL)
            # Its keys have other owners once its lease has run out.
            await expect(table.locator("tbody td:nth-child(2)")).to_have_text(["joined", "gone"])
            assert states(a) == {"a": "joined", "b": "gone"}
            assert a.status()["cluster"]["apps"]["echo"]["shards"] == 1
            with server.frozen():
                await expect(table.locator("tbody td:nth-child(2)").first).to_have_text("cut off")
                await expect(page.get_by_role("alert")).to_contain_text("a is cut off")
                assert "a is cut off: etcd has answered last" in printed(a, "status")
                # Not until then: a renewal that etcd answers late has not failed.
                await eventually(lambda: a.metric("onelane_machine_renewals_failed_total") >= 1)
            await expect(page.get_by_role("alert")).to_have_count(0)
            await eventually(lambda: a.metric("onelane_machine_fenced_seconds_total") > 0)
            assert console == []
