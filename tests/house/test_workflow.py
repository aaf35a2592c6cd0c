"""The workflow for a public CI runs the commands of `.ci/run` and of the Makefile, and no others."""

import re
from typing import Any

import pytest
import yaml

from tests.running_app import ROOT

WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
JOBS: dict[str, dict[str, Any]] = WORKFLOW["jobs"]
COMMANDS = [step["run"] for job in JOBS.values() for step in job["steps"] if "run" in step]
SUPPORTED = re.search(r"^SUPPORTED=\((.+)\)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)


def test_a_change_is_tested_by_all_of_ci() -> None:
    assert [command for command in COMMANDS if command.endswith("bash .ci/run")] != []


def test_every_target_that_it_makes_is_one_of_the_makefile() -> None:
    targets = {name for command in COMMANDS for name in " ".join(re.findall(r"\bmake ([\w -]+)", command)).split()}
    rules = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets >= {"audit", "sbom", "wheel"}
    assert targets - rules == set()


def test_the_tests_have_every_python_that_is_promised() -> None:
    assert SUPPORTED is not None
    (pythons,) = [step["with"]["python-version"] for step in JOBS["test"]["steps"] if "python" in step.get("uses", "")]
    assert sorted(pythons.split()) == SUPPORTED[1].split()


@pytest.mark.parametrize("job", ["test", "audit", "wheels", "sources"])
def test_nothing_is_published_without(job: str) -> None:
    assert job in JOBS["publish"]["needs"]
    assert JOBS["publish"]["if"] == "startsWith(github.ref, 'refs/tags/v')"


def test_no_job_but_that_which_publishes_may_write() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert [name for name, job in JOBS.items() if "permissions" in job] == ["publish"]


def test_every_action_is_of_a_stated_version() -> None:
    actions = [step["uses"] for job in JOBS.values() for step in job["steps"] if "uses" in step]
    assert [action for action in actions if not re.fullmatch(r"[\w./-]+@(v\d[\d.]*|release/v\d)", action)] == []
