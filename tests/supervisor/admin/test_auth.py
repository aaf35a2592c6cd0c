"""Which requests the admin address serves: on loopback, beyond it, with a token and without."""

from collections.abc import Iterator

import pytest

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


def test_with_a_token_only_requests_that_carry_it_are_served(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running(tmp_path_factory.mktemp("token"), echo(1), ONELANE_ADMIN_TOKEN="a-long-secret") as cluster:
        url = f"http://{cluster.admin}"
        assert http_request(f"{url}/")[0] == http_request(f"{url}/status", Authorization="Bearer wrong")[0] == 401
        # Header bytes that are no UTF-8.
        assert http_request(f"{url}/status", Authorization="Bearer \xff\xfe")[0] == 401
        assert http_request(f"{url}/status", Authorization="Bearer a-long-secret")[0] == 200
        assert http_request(f"{url}/", Cookie="onelane-token=a-long-secret")[0] == 200
        # Probes and scrapes need no token: their responses hold no secrets.
        assert http_request(f"{url}/healthz")[0] == http_request(f"{url}/metrics")[0] == 200


def test_beyond_loopback_and_without_a_token_only_metrics_and_health_are_served(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with running(tmp_path_factory.mktemp("open"), echo(1), "--admin", "0.0.0.0:0") as cluster:
        url = f"http://127.0.0.1:{cluster.admin.rpartition(':')[2]}"
        assert http_request(f"{url}/metrics")[0] == http_request(f"{url}/healthz")[0] == 200
        for path in ("/", "/status", "/snapshot", "/events", "/traces", "/static/page.js"):
            status, text = http_request(f"{url}{path}")
            assert (status, "set ONELANE_ADMIN_TOKEN" in text) == (403, True)
