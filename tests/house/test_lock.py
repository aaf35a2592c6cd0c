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


def pins() -> dict[str, Requirement]:
    """What the lock file has, by name; each line that begins a package ends in a backslash, before its hashes."""
    lines = [line for line in LOCK.splitlines() if line[:1].isalnum()]
    return {pin.name: pin for pin in (Requirement(line.removesuffix("\\")) for line in lines)}


def wanted(extra: str = "") -> list[Requirement]:
    """The requirements of the project, or of one of its extras and of those that it names."""
    texts = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    requirements = [Requirement(text) for text in texts]
    nested = [name for requirement in requirements if requirement.name == "onelane" for name in requirement.extras]
    return [r for r in requirements if r.name != "onelane"] + [r for name in nested for r in wanted(name)]


def test_the_lock_file_has_every_dependency_in_a_version_that_the_project_takes() -> None:
    """Else: make lock."""
    locked = pins()
    requirements = [*wanted(), *wanted("dev")]
    assert [r.name for r in requirements if canonicalize_name(r.name) not in locked] == []
    versions = {name: str(pin.specifier).removeprefix("==") for name, pin in locked.items()}
    assert [str(r) for r in requirements if not r.specifier.contains(versions[canonicalize_name(r.name)])] == []


def test_every_package_of_the_lock_file_has_hashes() -> None:
    blocks = re.split(r"^(?=[a-z])", LOCK, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(pins())
    assert [block.partition(" ")[0] for block in blocks if "--hash=sha256:" not in block] == []


@pytest.mark.skipif(not os.environ.get("CI"), reason="only CI promises to run what is locked")
def test_ci_runs_what_is_locked() -> None:
    installed = [pin for pin in pins().values() if pin.marker is None or pin.marker.evaluate()]
    assert [str(pin) for pin in installed if not pin.specifier.contains(version(pin.name))] == []
