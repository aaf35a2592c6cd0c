"""What is published is whole: the source distribution passes its own tests, and the metadata is what an index takes."""

import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tomllib
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement

from tests import tools
from tests.running_app import ROOT

BUILD = "import sys; from setuptools import build_meta as backend; backend.build_sdist(sys.argv[1])"
GENERATED = {"PKG-INFO", "setup.cfg"}
"""Written into each source distribution, beside the folder `runtime/onelane.egg-info`."""
FAST_TESTS = [
    "tests/core/test_keys.py",
    "tests/house/test_scenarios.py",
    "tests/house/test_workflow.py",
]
"""Of code, of texts beside the tests, and of files that no code imports: those with few imports, which are compiled
anew. CI runs all of them there: see `.ci/run`."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def sources() -> list[str]:
    """The files of the project: what git tracks or, in an unpacked source distribution, the list in it."""
    if (ROOT / ".git").exists():
        # Git refuses a checkout of another user unless it is told.
        listing = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
        names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    else:
        names = (ROOT / "runtime/onelane.egg-info/SOURCES.txt").read_text().splitlines()
    return sorted(name for name in names if name and name not in GENERATED and ".egg-info/" not in name)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unpacked source distribution, built from a copy: the build writes into the sources."""
    place = tmp_path_factory.mktemp("sdist")
    for name in sources():
        copy = place / "sources" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy, follow_symlinks=False)
    environment = os.environ | {"ONELANE_PURE": "1", "ONELANE_REPOSITORY": "https://git.example/onelane/"}
    build = [sys.executable, "-c", BUILD, str(place)]
    run = subprocess.run(build, cwd=place / "sources", env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (archive,) = place.glob("onelane-*.tar.gz")
    with tarfile.open(archive) as tar:
        assert [member.name for member in tar if not (member.isfile() or member.isdir())] == []
        tar.extractall(place, filter="data")
    return place / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def metadata(sdist: Path) -> Message:
    return BytesParser().parsebytes((sdist / "PKG-INFO").read_bytes())


def test_no_file_of_the_project_is_a_link() -> None:
    assert [name for name in sources() if (ROOT / name).is_symlink()] == []


@pytest.mark.slow
def test_the_source_distribution_has_every_file_of_the_project_and_no_other(sdist: Path) -> None:
    packed = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    assert {name for name in packed if ".egg-info/" not in name} - GENERATED == set(sources())


@pytest.mark.slow
def test_a_program_of_the_project_can_be_run_in_the_source_distribution(sdist: Path) -> None:
    programs = [name for name in sources() if (ROOT / name).stat().st_mode & stat.S_IXUSR]
    assert ".ci/run" in programs
    assert [name for name in programs if not os.access(sdist / name, os.X_OK)] == []


@pytest.mark.slow
def test_the_unpacked_source_distribution_passes_its_own_tests(sdist: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(sdist / "runtime")}
    # Else the run would compile all of the sources first: see tests/conftest.py.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", *FAST_TESTS]
    run = subprocess.run(tests, cwd=sdist, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert " passed" in run.stdout


@pytest.mark.slow
def test_the_metadata_is_valid(sdist: Path) -> None:
    Metadata.from_email((sdist / "PKG-INFO").read_bytes(), validate=True)


@pytest.mark.slow
def test_each_page_of_the_metadata_is_in_the_repository_that_publishes(metadata: Message) -> None:
    pages = dict(text.split(", ") for text in metadata.get_all("Project-URL", []))
    assert set(pages) == {"Source", "Documentation", "Changelog", "Issues", "Security"}
    assert pages["Source"] == "https://git.example/onelane"
    assert all(address.startswith("https://git.example/onelane") for address in pages.values())
    files = [address.partition("/blob/main/")[2] for address in pages.values() if "/blob/main/" in address]
    assert files
    assert [file for file in files if not (ROOT / file).is_file()] == []


@pytest.mark.slow
def test_the_licenses_are_in_the_source_distribution(sdist: Path, metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    licenses = metadata.get_all("License-File", [])
    assert len(licenses) == 2
    assert [name for name in licenses if not (sdist / name).is_file()] == []


def test_every_classifier_is_one_that_an_index_takes() -> None:
    tools.module("trove_classifiers", "the extra dev")
    from trove_classifiers import classifiers

    assert set(PROJECT["classifiers"]) - classifiers == set()


def test_the_pythons_that_are_promised_are_those_that_ci_tests() -> None:
    prefix = "Programming Language :: Python :: 3."
    promised = [text.removeprefix(prefix) for text in PROJECT["classifiers"] if text.startswith(prefix)]
    (supported,) = [line for line in (ROOT / ".ci/run").read_text().splitlines() if line.startswith("SUPPORTED=")]
    assert supported == f"SUPPORTED=({' '.join(f'3.{minor}' for minor in promised)})"
    assert PROJECT["requires-python"] == f">=3.{promised[0]}"


def test_each_dependency_is_justified_in_its_decision() -> None:
    page = (ROOT / "runtime/decisions/0007-libraries.md").read_text().casefold()
    names = {Requirement(text).name for text in PROJECT["dependencies"]}
    assert {name for name in names if f"`{name}`" not in page} == set()
