"""The pages that lead a newcomer name files that are there."""

import re
from pathlib import Path

import pytest

from tests.house.test_layers import FILES, ROOMS
from tests.running_app import ROOT

PAGES = ["runtime/DESIGN.md", "CONTRIBUTING.md", "SECURITY.md", "services/examples/README.md"]
PAGES += [f"runtime/decisions/{page.name}" for page in sorted((ROOT / "runtime" / "decisions").glob("*.md"))]
NAME = re.compile(r"`([a-z_]+(?:/[a-z_]+)+)(?:\.py)?`")
PATH = re.compile(r"`((?:tests|runtime|services|proto|deploy)/[\w./-]+?)`")
FOLDERS = {parent.as_posix() for name in FILES for parent in Path(name).parents}


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text()
    names = {name for name in NAME.findall(text) if name.partition("/")[0] in ROOMS}
    assert {name for name in names if name not in FILES and name not in FOLDERS} == set()
    assert {path for path in PATH.findall(text) if not (ROOT / path.partition("::")[0]).exists()} == set()


def test_the_tour_names_every_room() -> None:
    text = (ROOT / "runtime" / "DESIGN.md").read_text()
    rooms = {name.partition("/")[0] for name in FILES if "/" in name}
    assert {room for room in rooms if f"{room}/" not in text} == set()
