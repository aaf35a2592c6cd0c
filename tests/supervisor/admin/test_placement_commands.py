"""`onelane scale`, `pin` and `unpin`: what cannot be has one clear sentence, and changes nothing."""

import json
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from onelane.cli.main import main

from tests.running_app import ECHO, RunningApp, echo, http_request, running

pytestmark = pytest.mark.slow
OTHER = f'[apps.core]\n{ECHO}\nlisten = "127.0.0.1:0"\nshards = 1\nlistener = "grpcio"\n'


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    with running(tmp_path_factory.mktemp("placement"), f"{OTHER}{echo(1, '[apps.echo.pins]', 'apples = 0')}") as app:
        yield app


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("scale nobody 2", "no app is called 'nobody'"),
        ("scale echo 0", "echo cannot have 0 shards: at least 1 is needed"),
        ("scale echo -3", "echo cannot have -3 shards: at least 1 is needed"),
        ("scale core 2", "core cannot change its placement: its listener 'grpcio' opens its sockets itself"),
        ("pin k echo-7", "echo has no shard 7: it has the shards 0 to 0"),
        ("pin k nobody-0", "no app is called 'nobody'"),
        ("pin k echo", "'echo' is no name of a shard: expected APP-NUMBER, as `onelane status` shows it"),
        ("pin a\tb echo-0", "the key 'a\\tb' is not in its canonical text, 'a%09b'"),
        (f"pin {'k' * 1025} echo-0", "the key is longer than max_key_bytes = 1024"),
        ("unpin pears", "no app has a pin for the key 'pears'"),
        ("unpin pears --app echo", "echo has no pin for the key 'pears'"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence_and_changes_nothing(
    app: RunningApp, arguments: str, sentence: str
) -> None:
    before = app.status()
    run = CliRunner().invoke(main, [*arguments.split(" "), "--admin", app.admin])
    assert (run.exit_code, sentence in run.stderr, len(run.stderr.splitlines())) == (1, True, 1), run.output
    assert [row["epoch"] for row in app.status()["apps"].values()] == [row["epoch"] for row in before["apps"].values()]
    assert [row["pid"] for row in app.shards()] == [row["pid"] for row in before["apps"]["echo"]["shards"]]


@pytest.mark.parametrize(
    ("query", "status", "fault"),
    [
        ("scale?app=echo", 400, "the parameter 'shards' is missing"),
        ("scale?app=echo&shards=two", 400, "'two' is no number of shards"),
        ("scale?app=echo&shards=99999999999999999999", 400, "'99999999999999999999' is no number of shards"),
        (f"pin?shard=echo-0&key={quote('ä')}", 400, "the key 'ä' is not in its canonical text, '%C3%A4'"),
    ],
)
def test_a_request_with_a_wrong_parameter_is_answered_with_its_name(
    app: RunningApp, query: str, status: int, fault: str
) -> None:
    code, body = http_request(f"http://{app.admin}/{query}", method="POST", X_Onelane="1")
    assert (code, body.encode().decode("unicode_escape")) == (status, f'{{"fault": "{fault}"}}')


def test_a_request_of_another_page_in_a_browser_changes_nothing(app: RunningApp) -> None:
    assert http_request(f"http://{app.admin}/scale?app=echo&shards=2", method="POST")[0] == 403


def test_the_status_has_the_number_of_each_life_and_no_change_where_none_is_under_way(app: RunningApp) -> None:
    row = app.status()["apps"]["echo"]
    assert (row["shards"][0]["life"], row["change"], row["leaving"]) == (1, None, [])


def test_the_status_lists_the_pins_of_the_file_and_those_that_end_with_the_supervisor(app: RunningApp) -> None:
    def run(*arguments: str) -> str:
        return CliRunner().invoke(main, [*arguments, "--admin", app.admin]).stdout

    run("pin", "pears", "echo-0")
    rows = json.loads(run("status", "--json"))["apps"]
    text = run("status")
    run("unpin", "pears")
    assert rows["core"]["pins"] == []
    assert rows["echo"]["pins"] == [
        {"key": "apples", "shard": "echo-0", "from_file": True, "waiting": False},
        {"key": "pears", "shard": "echo-0", "from_file": False, "waiting": False},
    ]
    assert "pin apples → echo-0, of the file\n" in text
    assert "pin pears → echo-0, until `onelane unpin` or the end of `onelane up`\n" in text
    assert "pears" not in run("status")
