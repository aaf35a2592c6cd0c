"""An installation runs what it was built to run: with ONELANE_EXPECT=compiled or =pure in the environment, as CI and
the Makefile set it, any other is a failure.
"""

import ast
import os
import tomllib
from binascii import Error as BadBase64
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from onelane.wire import framing
from onelane.wire.build import COMPILED, PURE, Build, running_build
from onelane.wire.framing import BadWire

ROOT = Path(__file__).parents[2]
EXPECTED = os.environ.get("ONELANE_EXPECT", "")
MODULES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["onelane"]["compiled"]["modules"]
BUILDS = {COMPILED: Build(COMPILED, "libnghttp2"), PURE: Build(PURE, "ngh2")}


def test_what_runs_is_what_is_expected(record_property: Callable[[str, object], None]) -> None:
    record_property("build", str(running_build()))
    assert running_build() == (BUILDS[EXPECTED] if EXPECTED else running_build())


def test_all_modules_of_the_list_are_compiled_or_none() -> None:
    interpreted = [module for module in MODULES if (import_module(module).__file__ or "").endswith(".py")]
    assert interpreted == (MODULES if running_build().code == PURE else [])


def test_no_module_of_the_list_has_a_cached_property() -> None:
    """Compiled it is a property that remembers nothing, and nobody says so."""
    files = [ROOT / "runtime" / f"{module.replace('.', '/')}.py" for module in MODULES]
    assert [file.name for file in files if "cached_property" in file.read_text()] == []


def test_what_is_raised_from_another_error_in_compiled_code_has_it_as_its_cause() -> None:
    """mypyc's `raise … from` sets none: the error is the result of `caused`, or of `plugins.raised`, which uses it."""
    raises = [
        node
        for module in MODULES
        for node in ast.walk(ast.parse((ROOT / "runtime" / f"{module.replace('.', '/')}.py").read_text()))
        if isinstance(node, ast.Raise) and isinstance(node.cause, ast.Name)
    ]
    names = {ast.unparse(node.exc.func) if isinstance(node.exc, ast.Call) else ast.unparse(node) for node in raises}
    assert names == {"caused", "plugins.raised"}
    with pytest.raises(BadWire) as caught:
        framing.read_metadata([(b"a-bin", b"?")])
    assert isinstance(caught.value.__cause__, BadBase64)


def test_a_build_says_what_it_is() -> None:
    assert [str(build) for build in BUILDS.values()] == [
        "compiled code, wire on libnghttp2",
        "pure Python, wire on ngh2",
    ]
