"""The pytest plugin with the fixture `onelane_cluster`. pytest loads it wherever onelane is installed."""

import os
from collections.abc import Callable
from typing import Any

import pytest

# OpenTelemetry's API reads this at its first import; with it, its current span is that of a call of a `Cluster`.
os.environ.setdefault("OTEL_PYTHON_CONTEXT", "onelane")


@pytest.fixture
def onelane_cluster() -> Callable[..., Any]:
    """`async with onelane_cluster("service:Counter", shards=3) as cluster:`; see `onelane.testing.Cluster`."""
    from onelane.testing.cluster import Cluster

    return Cluster
