"""The console of the page: calls by HTTP as a page asks for them, and in a real Chromium."""

import asyncio
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from onelane import config
from onelane.supervisor.admin.call_console import (
    MAX_CALL_ANSWER_BYTES,
    MAX_CALL_REQUEST_BYTES,
    MAX_QUESTIONS,
    PIECE_BYTES,
)
from playwright.async_api import Browser, expect

from tests.bounds import BOUND_S
from tests.conftest import Where
from tests.running_app import RunningApp, descendants, echo, eventually, running
from tests.supervisor.admin.opened_page import CUT_OFF, opened

pytestmark = pytest.mark.slow
HOSTILE = "<img src=x onerror=\"window.hit='it'\">"
CALL_SEVERAL_TIMES = """([count, body]) => {
  const options = { method: "POST", headers: { "X-Onelane": "1" }, body };
  for (let i = 0; i < count; i++) fetch("/console/echo/call", options);
}"""
Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    closed = echo(1, "reflection = false").replace("[apps.echo]", "[apps.closed]")
    with running(tmp_path_factory.mktemp("console"), f"{echo(2)}\n{closed}") as cluster:
        yield cluster


def post(cluster: RunningApp, path: str, document: Any, **headers: str) -> tuple[int, str]:
    url, body = f"http://{cluster.admin}/console/{path}", json.dumps(document).encode()
    request = urllib.request.Request(url, data=body, headers={"X-Onelane": "1"} | headers)
    try:
        with urllib.request.urlopen(request, timeout=BOUND_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def called(cluster: RunningApp, method: str, deadline_s: float = 30, **request: Any) -> Lines:
    document = {"method": f"echo.v1.Echo/{method}", "request": json.dumps(request), "deadline_s": deadline_s}
    status, text = post(cluster, "echo/call", document | {"metadata": ["onelane-debug: 1", "x-there: it"]})
    assert status == 200
    return [json.loads(line) for line in text.splitlines()]


def running_questions(cluster: RunningApp) -> set[int]:
    """The processes of the console's questions."""
    return {pid for pid in descendants(cluster.process.pid) if "page_calls" in command_line(pid)}


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_methods_have_their_kind_their_key_and_the_types_of_their_requests(cluster: RunningApp) -> None:
    status, text = post(cluster, "echo/methods", {"metadata": []})
    answer = json.loads(text)
    methods = {method["name"]: method for method in answer["methods"]}
    assert status == 200
    assert methods["echo.v1.Echo/Chat"]["kind"] == "bidi-streaming"
    assert (methods["echo.v1.Echo/Unary"]["key"], methods["echo.v1.Echo/Who"]["key"]) == ("key", "ANY")
    fields = {field["name"]: field["type"] for field in answer["types"]["echo.v1.EchoRequest"]}
    assert fields == {"key": "string", "text": "string", "times": "uint32", "order": "string"}


def test_a_call_brings_its_responses_its_status_and_trailing_metadata(cluster: RunningApp) -> None:
    lines = called(cluster, "Download", key="k", text="hi", times=3)
    assert [line["response"]["text"] for line in lines if "response" in line] == ["hi"] * 3
    assert lines[-1]["status"]["code"] == "OK"
    failed = called(cluster, "Misbehave", key="k", order="abort")[-1]
    assert (failed["status"]["code"], failed["status"]["message"]) == ("NOT_FOUND", "no such thing: ünïcode")
    assert ["x-why", "aborted"] in failed["trailing_metadata"]


def test_the_owner_of_a_key_is_the_shard_that_serves_it(cluster: RunningApp) -> None:
    for key in ("a", "b/ü", "c"):
        query = urllib.parse.urlencode({"parts": json.dumps([key])})
        owner = json.loads(cluster.get(f"/console/echo/owner?{query}"))
        trailers = dict(called(cluster, "Unary", key=key)[-1]["trailing_metadata"])
        assert owner["owner"] == trailers["onelane-shard"]


def test_a_message_of_three_mebibytes_passes_and_one_beyond_the_limit_is_refused(cluster: RunningApp) -> None:
    text = "x" * (3 * 1024 * 1024)
    assert called(cluster, "Unary", key="k", text=text)[1]["response"]["text"] == text
    status, reason = post(cluster, "echo/call", {"request": "x" * MAX_CALL_REQUEST_BYTES})
    assert (status, "the request is longer than" in reason) == (400, True)


async def test_an_answer_that_does_not_end_is_cut_off_at_its_limit_and_its_process_ends(cluster: RunningApp) -> None:
    document = {"method": "echo.v1.Echo/Download", "deadline_s": 60, "metadata": []}
    endless = document | {"request": json.dumps({"key": "k", "text": "x" * 1024 * 1024, "times": 1000})}
    status, text = await asyncio.to_thread(post, cluster, "echo/call", endless)
    whole, cut, fault = text.rsplit("\n", 3)[:3]
    assert (status, len(json.loads(whole.splitlines()[-1])["response"]["text"])) == (200, 1024 * 1024)
    assert cut.startswith('{"response"') or not cut
    assert json.loads(fault) == {"fault": "the answer is longer than 16777216 bytes, and the call was ended"}
    assert MAX_CALL_ANSWER_BYTES < len(text) <= MAX_CALL_ANSWER_BYTES + PIECE_BYTES + len(fault) + 2
    await eventually(lambda: not running_questions(cluster))


@pytest.mark.parametrize(
    ("path", "document", "headers", "status", "reason"),
    [
        ("echo/call", {"method": "echo.v1.Echo/Unary"}, {"Origin": "http://evil.example"}, 403, "is refused"),
        ("nobody/call", {}, {}, 404, "no app is called"),
        ("closed/call", {}, {}, 400, "closed serves no reflection"),
        ("echo/call", [], {}, 400, "expected a JSON object"),
        ("echo/call", {"method": "a", "request": "{}", "deadline_s": 1e9}, {}, 400, "at most 60 seconds"),
        ("echo/call", {"metadata": [1]}, {}, 400, "expected a list of texts"),
    ],
)
def test_what_is_no_call_is_refused_with_its_reason(
    cluster: RunningApp, path: str, document: Any, headers: dict[str, str], status: int, reason: str
) -> None:
    actual_status, text = post(cluster, path, document, **headers)
    assert (actual_status, reason in text) == (status, True), text


async def test_a_method_that_never_answers_ends_with_its_deadline(cluster: RunningApp) -> None:
    (*_, last) = await asyncio.to_thread(called, cluster, "Hold", 0.5, key="held for ever")
    assert last["status"]["code"] == "DEADLINE_EXCEEDED"


async def test_a_call_whose_page_is_closed_is_ended_and_a_fifth_call_is_refused(
    browser: Browser, cluster: RunningApp
) -> None:
    async with opened(browser, cluster, "/#/console/echo/echo.v1.Echo%2FHold") as (page, _, _):
        await expect(page.get_by_role("button", name="Call", exact=True)).to_be_visible()
        document = {"method": "echo.v1.Echo/Hold", "request": '{"key": "k"}', "metadata": [], "deadline_s": 60}
        await page.evaluate(CALL_SEVERAL_TIMES, [MAX_QUESTIONS, json.dumps(document)])
        await eventually(lambda: len(running_questions(cluster)) == MAX_QUESTIONS)
        status, reason = await asyncio.to_thread(post, cluster, "echo/call", document)
        assert (status, "run already" in reason) == (400, True)
    await eventually(lambda: not running_questions(cluster))


async def test_the_form_calls_a_method_and_shows_owner_answer_and_trace(browser: Browser, cluster: RunningApp) -> None:
    where = Where(cluster)
    key = where.key_of("echo-1")
    await where.close()
    async with opened(browser, cluster, "/#/console") as (page, console, _):
        await page.locator("main").get_by_label("App").select_option("echo")
        await page.get_by_label("Method").select_option("echo.v1.Echo/Unary")
        await page.locator("input[name=key]").fill(key)
        await expect(page.locator(".owner")).to_contain_text("owned by echo-1")
        await page.locator("input[name=text]").fill(HOSTILE)
        await expect(page.locator("textarea[name=json]")).to_have_value(
            json.dumps({"key": key, "text": HOSTILE}, indent=2)
        )
        await page.locator("input[name=text]").press("Control+Enter")
        answer = page.get_by_role("region", name="answer")
        await expect(answer.get_by_role("status")).to_contain_text("OK")
        await expect(answer.get_by_role("status")).to_contain_text("by echo-1")
        await expect(answer.locator("pre")).to_contain_text("<img src=x")
        assert await page.evaluate("window.hit ?? null") is None
        await answer.get_by_role("link", name="Trace").click()
        await expect(page.locator(".waterfall .bar").first).to_be_visible()
        assert console == []


async def test_a_call_that_fails_shows_status_and_details_uncut_on_a_phone(
    browser: Browser, cluster: RunningApp
) -> None:
    size = {"width": 390, "height": 844}
    hash_of_method = "/#/console/echo/echo.v1.Echo%2FMisbehave"
    async with opened(browser, cluster, hash_of_method, viewport=size) as (page, console, _):
        await page.locator("textarea[name=json]").fill('{"key": "k", "order": "rich"}')
        await expect(page.locator("input[name=order]")).to_have_value("rich")
        await page.get_by_role("button", name="Call", exact=True).click()
        answer = page.get_by_role("region", name="answer")
        await expect(answer.get_by_role("status")).to_contain_text("FAILED_PRECONDITION")
        await expect(answer.locator("pre.bad")).to_contain_text("BECAUSE")
        assert await page.evaluate(CUT_OFF) == []
        assert console == []


@pytest.mark.parametrize(
    ("settings", "has_console"),
    [
        ({}, True),
        ({"admin": "unix:/run/onelane.sock"}, True),
        ({"admin": "0.0.0.0:9464", "admin_token": "a-long-secret"}, False),
        ({"admin": "0.0.0.0:9464", "admin_token": "a-long-secret", "console": True}, True),
        ({"console": False}, False),
    ],
)
def test_beyond_the_machine_the_console_is_off_unless_it_is_turned_on(
    settings: dict[str, Any], has_console: bool
) -> None:
    app = {"services": ["a:A"], "listen": "127.0.0.1:1"}
    assert config.parse({"apps": {"echo": app}, **settings}).has_console == has_console
