"""The pytest plugin with the fixture `onelane_cluster`. pytest loads it wherever onelane is installed.

A coroutine test that asks for `onelane_cluster` runs on asyncio as it is written: without a mark, without settings, and
without another plugin than anyio's, which onelane's dependencies bring. Where pytest-asyncio runs it, that stays so.
"""

import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

# OpenTelemetry's API reads this at its first import; with it, its current span is that of a call of a `Cluster`.
os.environ.setdefault("OTEL_PYTHON_CONTEXT", "onelane")


BACKEND = "anyio_backend"


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, name: str, obj: object) -> None:
    """Let anyio's plugin run the coroutine tests that ask for `onelane_cluster`."""
    if (
        collector.istestfunction(obj, name)
        and inspect.iscoroutinefunction(obj)
        and "onelane_cluster" in inspect.signature(obj).parameters
        and not _is_of_pytest_asyncio(collector, obj)
    ):
        pytest.mark.usefixtures(BACKEND)(obj)


def _is_of_pytest_asyncio(collector: pytest.Module | pytest.Class, test: object) -> bool:
    is_auto = getattr(collector.config.option, "asyncio_mode", None) or _setting(collector.config, "asyncio_mode")
    marks = [*getattr(test, "pytestmark", ()), *collector.iter_markers()]
    return is_auto == "auto" or any(mark.name == "asyncio" for mark in marks)


def _setting(config: pytest.Config, name: str) -> Any:
    try:
        return config.getini(name)
    except ValueError:
        return None  # No plugin has that setting.


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where trio is installed anyio's plugin runs each test on it too; a cluster runs on asyncio alone."""
    elsewhere = [item for item in items if "onelane_cluster" in _fixtures(item) and _backend(item) == "trio"]
    if elsewhere:
        config.hook.pytest_deselected(items=elsewhere)
        items[:] = [item for item in items if item not in elsewhere]


def _fixtures(item: pytest.Item) -> list[str]:
    return getattr(item, "fixturenames", [])


def _backend(item: pytest.Item) -> str:
    callspec = getattr(item, "callspec", None)
    backend = callspec.params.get(BACKEND, "") if callspec is not None else ""
    return str(backend[0] if isinstance(backend, tuple) else backend)


@pytest.fixture
def onelane_cluster(pytestconfig: pytest.Config) -> Callable[..., Any]:
    """`async with onelane_cluster("service:Counter", shards=3) as cluster:`; see `onelane.testing.Cluster`.

    Services are looked for in pytest's root folder too.
    """
    from onelane.testing.cluster import Cluster

    if (root := str(pytestconfig.rootpath)) not in sys.path:
        sys.path.append(root)
    return Cluster
