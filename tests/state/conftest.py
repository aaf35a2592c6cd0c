"""One PostgreSQL server for all tests of this room."""

from collections.abc import Iterator

import pytest

from tests import postgres
from tests.postgres import PostgresServer


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with postgres.server() as running:
        yield running
