"""The pytest plugin, in a project of a user's that has no settings of pytest: one run for all tests."""

import os
import re
import subprocess
import sys

import pytest

from tests.running_app import ROOT

pytestmark = pytest.mark.slow

FILES = {
    "in_the_root_folder.py": "from tests.echo.service import Echo\n",
    "deploy/beside_the_file.py": "from tests.echo.service import Echo\n",
    "deploy/onelane.toml": '[apps.echo]\nservices = ["beside_the_file:Echo"]\nlisten = "127.0.0.1:50051"\n',
    "their_tests/test_it.py": """
from pathlib import Path

import pytest

async def test_without_a_mark(onelane_cluster):
    async with onelane_cluster("tests.echo.service:Echo", shards=1) as cluster:
        assert cluster.owner_of("a") == 0

class TestClass:
    async def test_in_a_class(self, onelane_cluster):
        await test_without_a_mark(onelane_cluster)

@pytest.mark.anyio
async def test_with_a_mark(onelane_cluster):
    await test_without_a_mark(onelane_cluster)

async def test_service_in_the_root_folder(onelane_cluster):
    async with onelane_cluster("in_the_root_folder:Echo", shards=1):
        pass

async def test_service_beside_the_file(onelane_cluster):
    async with onelane_cluster(Path("deploy") / "onelane.toml", shards=1):
        pass
""",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The outcome of each of their tests."""
    folder = tmp_path_factory.mktemp("project")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--rootdir", str(folder)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "runtime")]), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
    )
    return dict(re.findall(r"(test_\w+)(?:\[\S+\])? (\w+)", done.stdout))


@pytest.mark.parametrize("test", ["test_without_a_mark", "test_in_a_class", "test_with_a_mark"])
def test_a_coroutine_test_that_asks_for_a_cluster_runs_on_asyncio(outcomes: dict[str, str], test: str) -> None:
    assert outcomes[test] == "PASSED"


@pytest.mark.parametrize("test", ["test_service_in_the_root_folder", "test_service_beside_the_file"])
def test_services_are_looked_for_in_the_root_folder_and_beside_the_file(outcomes: dict[str, str], test: str) -> None:
    assert outcomes[test] == "PASSED"
