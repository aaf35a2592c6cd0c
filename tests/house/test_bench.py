"""What `make bench` says to be interpreted is, and what it measures is what people run."""

import ast
import mmap
import os
import sys
from pathlib import Path

import pytest

from tests.bench.interpreted import Sources, compiled_parts, require_interpreted


def tree(root: Path, *, service: bool = True) -> Sources:
    """Sources that import, and do nothing."""
    files = ["runtime/onelane/__init__.py", *(["tests/__init__.py", "tests/echo/service.py"] if service else [])]
    for file in (root / name for name in files):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return Sources(sys.executable, root)


def test_sources_are_imported_in_place_of_what_is_installed(tmp_path: Path) -> None:
    require_interpreted(tree(tmp_path), [])


def test_a_service_from_elsewhere_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"tests\.echo|imported"):
        require_interpreted(tree(tmp_path, service=False), [])


def test_onelane_from_elsewhere_is_told(tmp_path: Path) -> None:
    sources = tree(tmp_path)
    (tmp_path / "runtime" / "onelane" / "__init__.py").write_text("__file__ = '/elsewhere/onelane/__init__.py'")
    with pytest.raises(RuntimeError, match=r"/elsewhere/onelane/__init__\.py.*expected"):
        require_interpreted(sources, [])


def test_a_process_that_has_loaded_something_compiled_of_onelane_is_told(tmp_path: Path) -> None:
    sources = tree(tmp_path)
    extension = tmp_path / "runtime" / "onelane" / "core" / "keys.so"
    extension.parent.mkdir()
    extension.write_bytes(b"code")
    with extension.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
        assert str(extension) in compiled_parts(os.getpid())
        with pytest.raises(RuntimeError, match=r"compiled code of onelane.*keys\.so"):
            require_interpreted(sources, [os.getpid()])


def test_another_extension_below_a_folder_of_that_name_is_none_of_onelane(tmp_path: Path) -> None:
    extension = tmp_path / "onelane" / ".venv" / "loop.so"
    extension.parent.mkdir(parents=True)
    extension.write_bytes(b"code")
    with extension.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ):
        assert str(extension) not in compiled_parts(os.getpid())


def test_every_app_that_is_measured_runs_in_fresh_processes() -> None:
    """Those of tests are forks of processes that have imported everything: they start in a fifth of the time."""
    calls = [
        (file.name, node.lineno, {keyword.arg for keyword in node.keywords})
        for file in Path(__file__).parent.parent.joinpath("bench").glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "running"
    ]
    assert len(calls) >= 4
    assert [call for call in calls if "python" not in call[2]] == []
