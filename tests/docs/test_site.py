"""The site of the documentation, as `make docs` builds it."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import onelane
import pytest

from docs.generator import api, assembly, blocks, glossary, navigation
from docs.generator.assembly import BrokenPage
from tests import tools
from tests.running_app import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tools.module("zensical", "pip install 'onelane[docs]'")
    tools.module("mkdocstrings", "pip install 'onelane[docs]'")
    folder = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "docs.generator", str(folder)]
    build = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stdout + build.stderr
    return folder / "site"


class Page(HTMLParser):
    """What a page names: its own anchors, links, and what a browser loads for it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.policy = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(values.get("href", ""))
        elif "src" in values:
            self.loaded.append(values["src"])
        elif values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"]


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {file: Page(file.read_text()) for file in sorted(site.rglob("*.html"))}


def test_no_page_loads_anything_from_another_server(site: Path, pages: dict[Path, Page]) -> None:
    for file, page in pages.items():
        assert [url for url in page.loaded if re.match(r"(https?:)?//", url)] == [], file
        assert page.policy.startswith("default-src 'self' data: blob:"), file
    for sheet in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import\s*)[\"']?(?:https?:)?//", sheet.read_text()) == [], sheet


def test_every_link_leads_to_a_page_and_a_heading_of_it(site: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for file, page in pages.items():
        # zensical's own page for what does not exist has links from the root.
        for link in page.links if file.name != "404.html" else ():
            target, _, anchor = unquote(link).partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            other = (file.parent / target).resolve() if target else file
            if not other.exists() or (anchor and other in pages and anchor not in pages[other].anchors):
                broken.append(f"{file.relative_to(site)}: {link}")
    assert broken == []


def test_a_link_to_a_file_that_does_not_exist_ends_the_build() -> None:
    with pytest.raises(BrokenPage, match=r"docs/tutorial\.md: no_such\.md does not exist"):
        assembly.with_links("see [it](no_such.md)", "docs/tutorial.md", assembly.sources())


def test_a_link_keeps_its_page_where_that_has_another_place_in_the_site() -> None:
    text = assembly.with_links("[`all`](../runtime/TELEMETRY.md#logs)", "docs/tutorial.md", assembly.sources())
    assert text == "[`all`](reference/telemetry.md#logs)"


def test_a_word_leads_to_the_glossary_at_its_first_place_alone() -> None:
    page = "# Lane\n\nThis `lane` is a lane; [a lane](x.md), and lanes. It turns off the turn of a key.\n"
    expected = page.replace("is a lane;", "is a [lane](concepts/glossary.md#lane);")
    expected = expected.replace("the turn of", "the [turn](concepts/glossary.md#turn) of")
    assert glossary.linked(page, "tutorial.md") == expected


def test_each_word_of_the_glossary_has_its_heading() -> None:
    page = (ROOT / "docs" / glossary.GLOSSARY).read_text()
    assert [word for word in glossary.WORDS if f"{{ #{word} }}" not in page] == []


def test_every_page_of_docs_is_in_the_navigation() -> None:
    settings = navigation.completed((ROOT / "docs" / "zensical.toml").read_text())
    assert [
        place for place in assembly.assembled() if f'"{place}"' not in settings and "/decisions/0" not in place
    ] == []


def test_a_how_to_that_is_not_listed_comes_last() -> None:
    listed = (ROOT / "docs" / "zensical.toml").read_text()
    short = listed.replace('{ "Scale" = "how-to/scaling.md" },', "")
    assert '{ "Scaling" = "how-to/scaling.md" },\n    ] },\n    { "Concepts"' in navigation.completed(short)


def test_what_a_service_may_use_of_its_shard_is_on_its_page() -> None:
    page = (ROOT / "docs" / "reference" / "service.md").read_text()
    members = {name for name in vars(onelane.Shard) if not name.startswith("_")}
    members -= set(api.OF_THE_RUNTIME["onelane.Shard"])
    assert [name for name in sorted(members) if not re.search(rf"shard\.{name}\b", page)] == []


def test_code_is_no_prose() -> None:
    page = "a b\n\n```sh\na\n```\n\n`a` a\n"
    assert blocks.outside_of_code(page, lambda prose: prose.replace("a", "c")) == "c b\n\n```sh\na\n```\n\n`a` c\n"
