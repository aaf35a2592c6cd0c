"""An app for the requests of browsers and of curl, and the two ways in which they send them."""

from collections.abc import Iterator

import pytest

from tests.running_app import RunningApp, running
from tests.web import ECHO_APP, SENDERS, Send


@pytest.fixture(scope="module")
def app(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    """The echo app on two shards, with the settings `TOML` of the module, if it has some."""
    with running(tmp_path_factory.mktemp("web"), getattr(request.module, "TOML", ECHO_APP)) as app:
        yield app


@pytest.fixture(scope="module")
def address(app: RunningApp) -> str:
    """Of the first shard's own port."""
    shard: str = app.shards()[0]["address"]
    return shard


@pytest.fixture(params=SENDERS)
def send(request: pytest.FixtureRequest) -> Send:
    return SENDERS[request.param]
