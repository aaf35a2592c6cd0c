"""One name is one thing in the package, and a local is named by what it holds."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType

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

ASSIGNED = (
    "there = 0",
    "class A: said = 0",
    "def f(): told = 0",
    "def f(): return [0 for found in ()]",
    "def f(): return (came := 0)",
    "def f(*theirs): return 0",
    "try: pass\nexcept E as given: pass",
    "match 0:\n    case [*gone]: pass",
    "def f():\n    global ours\n    ours = 0",
    "f(lambda kept: lambda: kept)",
)
"""Every way to assign a name that says nothing."""


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


def names_in(code: CodeType) -> Iterator[str]:
    """Every name that compiled code uses, so all that it assigns: at a third of the cost of its syntax tree."""
    yield from (*code.co_varnames, *code.co_cellvars, *code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in(constant)


def code_of(file: Path) -> CodeType:
    """As an import would load it: a run compiles the sources once."""
    code = SourceFileLoader(file.stem, str(file)).get_code(file.stem)
    assert code
    return code


def fillers_in(file: Path, text: str, code: CodeType) -> list[str]:
    """Its locals whose names say nothing, each with its line."""
    if FILLERS.isdisjoint(names_in(code)):
        return []
    return [f"{file}:{line} {name}" for line, name in assigned_names(ast.parse(text)) if name in FILLERS]


def test_no_class_or_constant_stands_for_two_things() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for file in FILES:
        for name in top_level_names(ast.parse(FILES[file].read_text())):
            if not name.startswith("_") and name not in ALLOWED:
                homes[name].append(file)
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


@pytest.mark.parametrize("folder", ["runtime", "services", "tests"])
def test_no_local_has_a_name_that_says_nothing(folder: str) -> None:
    files = [file for file in SOURCES if file.is_relative_to(ROOT / folder)]
    assert [filler for file in files for filler in fillers_in(file, file.read_text(), code_of(file))] == []


def fillers_of(text: str) -> list[str]:
    return fillers_in(Path("a.py"), text, compile(text, "a.py", "exec", dont_inherit=True))


def test_the_rules_see_what_they_are_for() -> None:
    """They would pass a package that they cannot read."""
    text = "class A: ...\nB = 1\nT = TypeVar('T')\n\ndef f(found):\n    for one, two in found: made = one\n"
    assert list(top_level_names(ast.parse(text))) == ["A", "B"]
    assert fillers_of(text) == ["a.py:5 found", "a.py:6 one", "a.py:6 made"]
    assert [text for text in ASSIGNED if not fillers_of(text)] == []
    assert ROOT / "runtime/onelane/lane/lane.py" in SOURCES
