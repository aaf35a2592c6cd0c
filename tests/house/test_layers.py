"""The house: rooms in order. A file imports only rooms before its own, or its own room, and never in a circle."""

import ast
import functools
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.running_app import ROOT

PACKAGE = ROOT / "runtime" / "onelane"
ROOMS = [
    "errors",
    "secret_files",
    "core",
    "config",
    "plugins",
    "wire",
    "telemetry",
    "cluster",
    "state",
    "client",
    "server",
    "lane",
    "shard",
]
ROOMS += ["supervisor", "cli", "testing"]
PURE = ["core/*", "wire/*", "telemetry/spans", "telemetry/stats", "telemetry/histogram", "telemetry/sampling"]
PURE += ["telemetry/values", "telemetry/stalls", "telemetry/hot_keys", "telemetry/codec"]
PURE += ["telemetry/collector/totals", "telemetry/collector/sequence", "telemetry/collector/tail_sampling"]
PURE += ["telemetry/collector/history", "client/retry", "client/outlier", "client/propagation", "lane/admission"]
PURE += ["cluster/coordination", "cluster/coordination/etcd_json", "cluster/coordination/etcd_errors"]
PURE += ["cluster/coordination/members", "cluster/machines", "cluster/placements"]
PURE += ["cluster/coordinator", "cluster/following", "cluster/overview", "cluster/xds/*"]
PURE += ["state/agenda", "state/reminder", "state/store"]
PURE += ["shard/topics", "supervisor/shard_state", "supervisor/liveness", "supervisor/target"]
DOORS = {"core/clock", "wire/driver", "wire/unix_peers"}
"""What stands among the pure files to open them to the world: the clock, the driver of the wire,
and the user behind a Unix socket."""
OUTSIDE = {"asyncio", "anyio", "grpc", "opentelemetry", "os", "socket", "subprocess", "threading", "time"}
EXTENSIONS = {file.relative_to(PACKAGE).with_suffix("").as_posix() for file in PACKAGE.rglob("*.pyx")}
GROUND = {"errors", "secret_files", "config", "plugins"}
"""Files below all rooms."""
SEAMS = {"config", "cluster/membership", "cluster/coordination", "telemetry/sinks"}
"""Folders whose `__init__` holds their protocol, or hands on what is read everywhere (`config`); every other one is a
docstring and nothing else."""


def name_of(file: Path) -> str:
    path = file.relative_to(PACKAGE).with_suffix("")
    return (path.parent if path.name == "__init__" else path).as_posix()


FILES = {
    name_of(file): file
    for file in PACKAGE.rglob("*.py")
    if file.relative_to(PACKAGE).parts[0] not in {"v1", "protos", "__init__.py", "__main__.py"}
}


@functools.cache
def parsed(file: Path) -> ast.Module:
    """Kept: several tests look at each file."""
    return ast.parse(file.read_text())


def statements(parent: ast.AST) -> Iterator[ast.stmt]:
    """All statements of a file, however deep: imports and classes are some, and no expression need be looked at."""
    for part in ("body", "orelse", "finalbody", "handlers", "cases"):
        for child in getattr(parent, part, ()):
            if isinstance(child, ast.stmt):
                yield child
            yield from statements(child)


@functools.cache
def imports(name: str) -> set[str]:
    """The dotted names that a file imports, at its top level or anywhere, under TYPE_CHECKING too."""
    nodes = [node for node in statements(parsed(FILES[name])) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@functools.cache
def files_of(name: str) -> set[str]:
    """The files of ours that a file imports."""
    paths = ["/".join(dotted.split(".")[1:]) for dotted in imports(name) if dotted.startswith("onelane.")]
    return {path if path in FILES else path.rpartition("/")[0] for path in paths if path not in EXTENSIONS} & set(
        FILES
    ) - {name}


def room_of(name: str) -> str:
    return name.partition("/")[0]


def is_text(file: Path) -> bool:
    """Nothing but a docstring. A file that does not end with one need not be parsed."""
    return file.read_text().endswith('"""\n') and [type(node) for node in parsed(file).body] == [ast.Expr]


# One test of all files, not one of each: hundreds of tests that take no time cost seconds for being tests.
def test_a_file_imports_only_rooms_below_its_own() -> None:
    offenders = {}
    for name in FILES:
        allowed = {*ROOMS[: ROOMS.index(room_of(name))], room_of(name)}
        offenders[name] = {other for other in files_of(name) if room_of(other) not in allowed}
    assert {name: others for name, others in offenders.items() if others} == {}


def test_no_file_imports_itself_by_a_circle() -> None:
    # Raises CycleError, which names the circle.
    order = list(TopologicalSorter({name: files_of(name) for name in FILES}).static_order())
    assert len(order) == len(FILES)


PURE_FILES = {name for name in FILES if any(fnmatch(name, pattern) for pattern in PURE)}


def test_a_pure_file_touches_nothing_outside() -> None:
    touched = {name: OUTSIDE & {dotted.split(".")[0] for dotted in imports(name)} for name in PURE_FILES - DOORS}
    assert {name: outside for name, outside in touched.items() if outside} == {}


def test_a_pure_file_imports_pure_files_alone() -> None:
    others = {name: files_of(name) - (PURE_FILES - DOORS) - {"errors"} for name in PURE_FILES}
    assert {name: imported for name, imported in others.items() if imported} == {}


def test_every_folder_says_what_it_is() -> None:
    folders = {name_of(file / "__init__.py") for file in PACKAGE.rglob("*") if list(file.glob("*.py"))}
    rooms = {name for name in folders if room_of(name) in ROOMS and room_of(name) != "testing"} - SEAMS
    assert {name for name in rooms if name not in FILES or not is_text(FILES[name])} == set()


def page_of(folder: str) -> str:
    """The docstring of a folder, as one line."""
    return " ".join((ast.get_docstring(parsed(FILES[folder])) or "").split())


FOLDERS = sorted(name for name in FILES if FILES[name].name == "__init__.py" and room_of(name) != "testing")


@pytest.mark.parametrize("room", [name for name in FOLDERS if "/" not in name])
def test_a_room_imports_the_rooms_that_its_page_names(room: str) -> None:
    page = page_of(room).partition("Imports:")[2].partition("Main ")[0]
    named = set(re.findall(r"`(\w+)`", page)) | GROUND
    imported = {room_of(other) for name in FILES if room_of(name) == room for other in files_of(name)} - {room}
    assert page.lstrip().startswith("all") or imported <= named


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_main_types_that_a_page_names_are_there(folder: str) -> None:
    main = page_of(folder).partition("Main type")[2]
    for module, name in re.findall(r"`(\w+)\.(\w+)`", main):
        nodes = statements(parsed(FILES[f"{folder}/{module}"]))
        assert name in {node.name for node in nodes if isinstance(node, ast.ClassDef)}, f"{module}.{name}"


def test_one_file_imports_ngh2() -> None:
    """So that another binding can take its place."""
    importers = [
        file for file in PACKAGE.rglob("*.py") if re.search(r"^(?:from|import) ngh2", file.read_text(), re.MULTILINE)
    ]
    assert importers == [PACKAGE / "wire" / "ngh2_session.py"]
