"""One name is one thing in the package, and a local is named by what it holds."""

import ast
from collections import defaultdict
from collections.abc import Iterator

import pytest

from tests.house.test_layers import FILES
from tests.running_app import ROOT

FILLERS = {"found", "made", "one", "there", "said", "told", "came", "given", "kept", "gone", "theirs", "ours"}
MIRRORED = {"ConnectionLost", "Event", "Messages", "Pong"}
"""Events of both ends of the wire: `wire/server` and `wire/client`."""
STATUSES = {"OK", "UNAVAILABLE", "UNKNOWN"}
"""gRPC's, once as its enum and once as numbers on the wire."""
OF_A_SESSION = {"ENGINE", "AnswerReceived", "Body", "StreamEnded"}
"""Parts of `wire/ngh2_session`, which `wire/http2` hands on."""
ALLOWED = MIRRORED | STATUSES | OF_A_SESSION | {"__all__", "log"}
SOURCES = sorted(
    file
    for folder in ("runtime", "services", "tests")
    for file in (ROOT / folder).rglob("*.py")
    if "_pb2" not in file.name and "node_modules" not in file.parts
)


def top_level_names(tree: ast.Module) -> Iterator[str]:
    """Classes and constants of a file, without type variables, which name nothing by themselves."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign) and "TypeVar(" not in ast.unparse(node.value):
            yield from (name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def assigned_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of every local, loop variable and parameter."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.MatchAs | ast.MatchStar | ast.ExceptHandler) and node.name:
            yield node.lineno, node.name


def test_no_class_or_constant_stands_for_two_things() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for file in FILES:
        for name in top_level_names(ast.parse(FILES[file].read_text())):
            if not name.startswith("_") and name not in ALLOWED:
                homes[name].append(file)
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


@pytest.mark.parametrize("folder", ["runtime", "services", "tests"])
def test_no_local_has_a_name_that_says_nothing(folder: str) -> None:
    fillers = [
        f"{file.relative_to(ROOT)}:{line} {name}"
        for file in SOURCES
        if file.is_relative_to(ROOT / folder)
        for line, name in assigned_names(ast.parse(file.read_text()))
        if name in FILLERS
    ]
    assert fillers == []


def test_the_rules_see_what_they_are_for() -> None:
    """They would pass a package that they cannot read."""
    tree = ast.parse("class A: ...\nB = 1\nT = TypeVar('T')\n\ndef f(found):\n    for one, two in found: made = one\n")
    assert list(top_level_names(tree)) == ["A", "B"]
    assert {name for _, name in assigned_names(tree)} >= {"found", "one", "made"}
    assert ROOT / "runtime/onelane/lane/lane.py" in SOURCES
