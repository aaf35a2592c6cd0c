"""The pages that lead a newcomer name files, classes and functions that are there."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.test_layers import FILES, ROOMS
from tests.running_app import ROOT

TOUR = "runtime/DESIGN.md"
PAGES = [TOUR, "README.md", "CONTRIBUTING.md", "SECURITY.md", "deploy/README.md", "runtime/TELEMETRY.md"]
PAGES += ["services/examples/README.md"]
PAGES += sorted(page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md"))
PAGES += [f"runtime/decisions/{page.name}" for page in sorted((ROOT / "runtime" / "decisions").glob("*.md"))]
NAME = re.compile(r"`([a-z_]+(?:/[a-z_]+)+)(?:\.py)?`")
PATH = re.compile(r"`((?:tests|runtime|services|proto|deploy)/[\w./-]+?)(?:::\w+)?`")
MEMBER = re.compile(r"`([A-Z]+[a-z]\w*)\.(\w+)(?:\(.*?\))?`")
FLOOR = re.compile(r"^ ?\d+  (\w+)\b", re.MULTILINE)
ROOM_ROW = re.compile(r"^\| `(\w+)/` \|.*\| (`.+) \|$", re.MULTILINE)
MAIN_TYPE = re.compile(r"`(\w+)\.(\w+)`")
FOLDERS = {parent.as_posix() for name in FILES for parent in Path(name).parents}
NOT_OURS = {"LobbyServicer"}
"""Classes of the examples that a page gives."""


def definitions(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node


def members_of(node: ast.AST) -> set[str]:
    """The methods, fields and attributes of a class, and whatever else it mentions."""
    names: set[str] = set()
    for inner in ast.walk(node):
        match inner:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.Attribute(attr=name) | ast.Name(id=name):
                names.add(name)
    return names


@functools.cache
def classes() -> dict[str, set[str]]:
    """Members, by class. Not read as the module is imported, which every worker of a parallel run does."""
    return {
        name: members_of(node)
        for file in FILES.values()
        for name, node in definitions(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef)
    }


def is_cut_short(name: str) -> bool:
    """Whether a name is the end of a file's, without its room."""
    return any(file.endswith(f"/{name}") for file in FILES)


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text()
    names = {name for name in NAME.findall(text) if name.partition("/")[0] in ROOMS or is_cut_short(name)}
    assert {name for name in names if name not in FILES and name not in FOLDERS} == set()
    assert {path for path in PATH.findall(text) if not (ROOT / path).exists()} == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_member_of_a_class_that_a_page_names_is_there(page: str) -> None:
    members = {pair for pair in MEMBER.findall((ROOT / page).read_text()) if pair[0] not in NOT_OURS}
    assert {f"{cls}.{name}" for cls, name in members if name not in classes().get(cls, set())} == set()


def test_the_tour_names_every_room_and_its_main_types() -> None:
    rows = dict(ROOM_ROW.findall((ROOT / TOUR).read_text()))
    assert set(rows) == {name.partition("/")[0] for name in FILES if "/" in name}
    for room, types in rows.items():
        for module, name in MAIN_TYPE.findall(types):
            assert name in dict(definitions(ast.parse(FILES[f"{room}/{module}"].read_text()))), f"{room}/{module}"


def test_the_drawing_of_the_tour_has_the_order_that_imports_obey() -> None:
    floors = FLOOR.findall((ROOT / TOUR).read_text())
    assert floors[::-1] == [room for room in ROOMS if room not in {"config", "plugins", "secret_files", "testing"}]
