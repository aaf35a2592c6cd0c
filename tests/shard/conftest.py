"""What the tests of a shard may ask for."""

from collections.abc import Iterator

import pytest

from tests.running_app import echo, running
from tests.shard.shards import SHARDS, Shards


@pytest.fixture(scope="package", params=["native", "grpcio", "inline"])
def shards(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Shards]:
    """An echo app of three shards; subscribers may lag five messages behind."""
    listener = "grpcio" if request.param == "grpcio" else "native"
    more = ("--inline",) if request.param == "inline" else ()
    toml = echo(SHARDS, f'listener = "{listener}"', "max_lag = 5")
    with running(tmp_path_factory.mktemp("shards"), toml, *more) as app:
        yield Shards(app)
