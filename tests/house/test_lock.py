"""The lock file is of this project: what `make setup` and CI install, each package with its hashes."""

import os
import re
import tomllib
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.running_app import ROOT

LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> list[Requirement]:
    """What the lock file has; each line that begins a package ends in a backslash, before its hashes."""
    lines = [line for line in LOCK.splitlines() if line[:1].isalnum()]
    return [Requirement(line.removesuffix("\\")) for line in lines]


def versions() -> dict[str, str]:
    """The version of each package that the lock file has for this machine and Python."""
    return {pin.name: str(pin.specifier).removeprefix("==") for pin in pins() if applies(pin)}


def applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate()


def wanted(extra: str = "") -> list[Requirement]:
    """The requirements of the project, or of one of its extras and of those that it names."""
    texts = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    requirements = [Requirement(text) for text in texts]
    nested = [name for requirement in requirements if requirement.name == "onelane" for name in requirement.extras]
    return [r for r in requirements if r.name != "onelane"] + [r for name in nested for r in wanted(name)]


def test_the_lock_file_has_every_dependency_in_a_version_that_the_project_takes() -> None:
    """Else: make lock."""
    locked = versions()
    requirements = [requirement for requirement in (*wanted(), *wanted("dev")) if applies(requirement)]
    assert [str(r) for r in requirements if canonicalize_name(r.name) not in locked] == []
    assert [str(r) for r in requirements if not r.specifier.contains(locked[canonicalize_name(r.name)])] == []


def test_every_package_of_the_lock_file_has_hashes() -> None:
    blocks = re.split(r"^(?=[a-z])", LOCK, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(pins())
    assert [block.partition(" ")[0] for block in blocks if "--hash=sha256:" not in block] == []


@pytest.mark.skipif(not os.environ.get("CI"), reason="only CI promises to run what is locked")
def test_ci_runs_what_is_locked() -> None:
    locked = versions()
    assert {name: version(name) for name in locked} == locked
