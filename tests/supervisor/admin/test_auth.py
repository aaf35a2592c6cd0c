"""Which requests the admin address serves: on loopback, beyond it, with a token and without."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from onelane.supervisor.admin.auth import Unauthorized

from tests.bounds import BOUND_S
from tests.running_app import RunningApp, echo, http_request, running

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    with running(tmp_path_factory.mktemp("auth"), echo(2)) as started:
        yield started


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "8.8.8.8:80"])
def test_a_page_of_another_origin_cannot_reach_the_server_by_its_own_host_name(cluster: RunningApp, host: str) -> None:
    for path in ("/", "/status", "/snapshot", "/traces", "/metrics"):
        status, text = http_request(f"http://{cluster.admin}{path}", Host=host)
        assert status == 403
        assert "is no name of the loopback address" in text


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]:9"])
def test_a_name_of_the_loopback_address_is_served(cluster: RunningApp, host: str) -> None:
    assert http_request(f"http://{cluster.admin}/healthz", Host=host)[0] == 200


@pytest.mark.parametrize(
    ("headers", "reason"),
    [({}, "needs the header X-Onelane"), ({"X-Onelane": "1", "Origin": "http://evil.example"}, "is refused")],
)
def test_a_command_of_another_origin_is_refused(cluster: RunningApp, headers: dict[str, str], reason: str) -> None:
    for path in ("/shards/echo/0/drain", "/shards/echo/0/restart", "/restart", "/reload"):
        status, text = http_request(f"http://{cluster.admin}{path}", method="POST", **headers)
        assert (status, reason in text) == (403, True)
    assert [shard["state"] for shard in cluster.shards()] == ["ready", "ready"]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    with running(tmp_path_factory.mktemp("secured"), echo(1), ONELANE_ADMIN_TOKEN="a-long-secret") as started:
        yield started


def test_with_a_token_only_requests_that_carry_it_are_served(secured: RunningApp) -> None:
    url = f"http://{secured.admin}"
    assert http_request(f"{url}/")[0] == http_request(f"{url}/status", Authorization="Bearer wrong")[0] == 401
    # Header bytes that are no UTF-8.
    assert http_request(f"{url}/status", Authorization="Bearer \xff\xfe")[0] == 401
    assert http_request(f"{url}/status", Authorization="Bearer a-long-secret")[0] == 200
    assert http_request(f"{url}/", Cookie="onelane-token=a-long-secret")[0] == 200
    # Probes and scrapes need no token: their responses hold no secrets.
    for path in ("/livez", "/readyz", "/healthz", "/metrics"):
        assert http_request(f"{url}{path}")[0] == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [("/", 200), ("/metrics", 200), ("/static/page.js", 200), ("/traces/ff", 404), ("/nowhere", 404), ("/status", 401)],
)
def test_every_response_keeps_browsers_from_guessing_its_type_and_from_framing_it(
    secured: RunningApp, path: str, status: int
) -> None:
    connection = HTTPConnection(secured.admin, timeout=BOUND_S)
    token = {"Authorization": "Bearer a-long-secret"} if status != 401 else {}
    connection.request("GET", path, headers=token)
    with closing(connection), connection.getresponse() as response:
        assert response.status == status
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert response.headers["Server"] == "onelane"


def _supervisor(app: RunningApp) -> dict[str, Any]:
    """Its own part of the status."""
    answer = http_request(f"http://{app.admin}/status", Authorization="Bearer a-long-secret")
    return dict(json.loads(answer[1])["supervisor"])


def _refusals(app: RunningApp) -> int:
    """Lines of the log about them."""
    return app.log.read_text().count("admin.unauthorized peer=127.0.0.1")


async def test_wrong_tokens_wait_few_at_a_time() -> None:
    unauthorized, request = Unauthorized(32, lambda _: None), make_mocked_request("GET", "/status")
    guesses = [asyncio.create_task(unauthorized.refusal(request, is_guess=True)) for _ in range(40)]
    done, waiting = await asyncio.wait(guesses, return_when=asyncio.FIRST_COMPLETED)
    assert (len(done), len(waiting)) == (8, 32)
    assert {guess.result().status for guess in done} == {429}
    assert {(await guess).status for guess in waiting} == {401}


def test_wrong_tokens_wait_and_are_logged_once_a_second_while_the_right_one_is_served(secured: RunningApp) -> None:
    begin, guesses, before = time.monotonic(), [], _refusals(secured)
    for number in range(40):
        guess = HTTPConnection(secured.admin, timeout=BOUND_S)
        guess.request("GET", "/status", headers={"Authorization": f"Bearer guess-{number}"})
        guesses.append(guess)
    assert http_request(f"http://{secured.admin}/status", Authorization="Bearer a-long-secret")[0] == 200
    statuses = Counter(guess.getresponse().status for guess in guesses)
    for guess in guesses:
        guess.close()
    # A slow machine lets more of them wait, one after the other.
    assert statuses[401] >= 32
    assert statuses[401] + statuses[429] == len(guesses)
    assert _refusals(secured) >= 1
    assert _refusals(secured) - before <= 2 + (time.monotonic() - begin)
    assert "guess-" not in secured.log.read_text()
    assert _supervisor(secured)["admin_refusals"]["unauthorized"] >= len(guesses)
    # It is measured once a second, and a second after the start for the first time.
    while (left := _supervisor(secured)["descriptors_left"]) is None:
        pass
    assert left > 0


def test_beyond_loopback_and_without_a_token_only_metrics_and_health_are_served(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with running(tmp_path_factory.mktemp("open"), echo(1), "--admin", "0.0.0.0:0") as cluster:
        url = f"http://127.0.0.1:{cluster.admin.rpartition(':')[2]}"
        assert http_request(f"{url}/metrics")[0] == http_request(f"{url}/healthz")[0] == 200
        for path in ("/", "/status", "/snapshot", "/events", "/traces", "/static/page.js"):
            status, text = http_request(f"{url}{path}")
            assert (status, "set ONELANE_ADMIN_TOKEN" in text) == (403, True)
