"""The app on which calls are made with their key at home and away."""

from collections.abc import Iterator

import pytest

from tests.mirror.app import Mirrored, mirrored_app


@pytest.fixture(scope="package", params=["native", "grpcio"])
def mirrored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirrored]:
    with mirrored_app(tmp_path_factory.mktemp("mirrored"), request.param) as app:
        yield app
