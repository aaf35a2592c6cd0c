"""Stock clients that stand on an HTTP/2 of their own, each over one connection to the shared port of three shards.

tonic stands on h2 and hyper, grpc-java on Netty. A client runs every case with a key of each shard, so two of its
three keys are away wherever its connection ends.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests import tools
from tests.running_app import RunningApp, echo, eventually, running

pytestmark = pytest.mark.slow
CLIENTS: dict[str, Callable[[], list[str]]] = {
    "tonic": lambda: [tools.tonic()],
    "grpc-java": lambda: [tools.grpc_java(), "Client"],
}
CASES = (
    *("unary", "client_stream", "server_stream", "bidi", "half_close_after_the_answers", "plain_handlers"),
    *("empty_stream", "metadata", "error", "rich_error", "error_of_an_upload", "unknown_method", "deadline"),
    *("deadline_of_a_stream", "cancel", "cancel_of_a_stream", "large", "too_large", "gzip", "many_at_once"),
    *("one_after_another", "first_calls"),
)
SHARDS = 3
CALLS = 150
"""With each key, of `many_at_once` and of `one_after_another`."""


@pytest.fixture(scope="module", params=["native", "grpcio"])
def app(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    with running(tmp_path_factory.mktemp("peers"), echo(SHARDS, f'listener = "{request.param}"')) as app:
        yield app


class Client:
    """A process of a stock client that has run all its cases, and still holds its connection."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        lines = list(iter(self._line, {"case": "done"}))
        self.errors = {(line["case"], line["key"]): line["error"] for line in lines}

    def hold_streams(self) -> None:
        """Begin a stream with each key that neither side ends."""
        assert self._process.stdin is not None
        self._process.stdin.write("hold\n")
        self._process.stdin.flush()
        assert self._line() == {"case": "hold"}

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line: dict[str, Any] = json.loads(self._process.stdout.readline())
        return line


@dataclass(frozen=True)
class Run:
    client: Client
    keys: list[str]
    forwards: float
    in_flight: float
    """Calls in flight before it came."""


@pytest.fixture(scope="module", params=CLIENTS)
def command(request: pytest.FixtureRequest) -> list[str]:
    return CLIENTS[request.param]()


@pytest.fixture(scope="module")
def run(command: list[str], app: RunningApp) -> Iterator[Run]:
    places = places_in(app)
    in_flight, forwards = app.in_flight(), app.metric("onelane_forwards_total")
    arguments = [app.listen["echo"], *(word for place in places for word in place)]
    with subprocess.Popen([*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            client = Client(process)
            forwards = app.metric("onelane_forwards_total") - forwards
            yield Run(client, [key for key, _, _ in places], forwards, in_flight)
        finally:
            process.kill()


def places_in(app: RunningApp) -> list[tuple[str, str, str]]:
    """Two keys of each shard, and the shard."""
    placement = app.placement()
    owners = {key: placement.owner_of(key).name for key in map(str, range(100))}
    keys = {shard.name: [key for key, owner in owners.items() if owner == shard.name] for shard in placement.members}
    return [(of_shard[0], of_shard[1], shard) for shard, of_shard in keys.items()]


def test_every_case_holds_at_home_and_away(run: Run) -> None:
    assert run.client.errors == dict.fromkeys((case, key) for case in CASES for key in run.keys)


def test_two_of_three_keys_were_away(run: Run) -> None:
    assert run.forwards >= (SHARDS - 1) * 2 * CALLS


async def test_calls_that_it_has_cancelled_are_over_while_its_connection_lasts(app: RunningApp, run: Run) -> None:
    await eventually(lambda: app.in_flight() == run.in_flight)


async def test_streams_of_a_client_that_is_killed_end(app: RunningApp, run: Run) -> None:
    run.client.hold_streams()
    assert app.in_flight() >= run.in_flight + SHARDS
    run.client.kill()
    await eventually(lambda: app.in_flight() == run.in_flight)
