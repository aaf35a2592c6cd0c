"""The pytest plugin: the fixture `onelane_cluster`. pytest loads it where onelane is installed; unused, it is free."""

import os
from collections.abc import Callable
from typing import Any

import pytest

# Read by OpenTelemetry's API when it is first imported, so that it knows the calls of a `Cluster`.
os.environ.setdefault("OTEL_PYTHON_CONTEXT", "onelane")


@pytest.fixture
def onelane_cluster() -> Callable[..., Any]:
    """`async with onelane_cluster("service:Counter", shards=3) as cluster:`; see `onelane.testing.Cluster`."""
    from onelane.testing.cluster import Cluster

    return Cluster
