"""The pytest plugin: the fixture `onelane_cluster`. pytest loads it where onelane is installed; unused, it is free."""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def onelane_cluster() -> Callable[..., Any]:
    """`async with onelane_cluster("service:Counter", shards=3) as cluster:`; see `onelane.testing.Cluster`."""
    from onelane.testing.cluster import Cluster

    return Cluster
