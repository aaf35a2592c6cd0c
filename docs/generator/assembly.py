"""Which pages the site has: those of docs/, pages from elsewhere in the repository, and those made from the code."""

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from docs.generator import glossary
from docs.generator.blocks import outside_of_code

DOCS = Path(__file__).parent.parent
ROOT = DOCS.parent
FROM_ELSEWHERE = {
    "README.md": "index.md",
    "runtime/TELEMETRY.md": "reference/telemetry.md",
    "runtime/DESIGN.md": "project/architecture.md",
    "services/examples/README.md": "project/examples.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "deploy/README.md": "project/deploy-files.md",
}
"""Pages of other folders → their place in the site."""
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
PICTURE = re.compile(r"^!\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+\.svg)\)$", re.MULTILINE)


class BrokenPage(Exception):
    """A page of the documentation names something that does not exist."""


def assembled() -> dict[str, str]:
    """Every page of the site by its path, with links that hold in the site, and pictures inside of the page."""
    from docs.generator.reference import generated

    places = sources()
    written = {place: source for source, place in places.items()}
    pages = generated()
    for place, source in sorted(written.items()):
        text = (ROOT / source).read_text(encoding="utf-8")
        page = with_links(text, source, places)
        pages[place] = with_pictures(glossary.linked(page, place) if explains(place) else page, source)
    return pages


def explains(place: str) -> bool:
    """Whether words of a page lead to the glossary; pages on the project itself are for those who know them."""
    return place != glossary.GLOSSARY and not place.startswith("project/")


def sources() -> dict[str, str]:
    """The written pages: path in the repository → path in the site."""
    own = {f"docs/{path}": path for path in sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))}
    decisions = {
        f"runtime/decisions/{page.name}": f"project/decisions/{'index.md' if page.stem == 'README' else page.name}"
        for page in sorted((ROOT / "runtime" / "decisions").glob("*.md"))
    }
    return own | FROM_ELSEWHERE | decisions


def with_links(text: str, source: str, places: Mapping[str, str]) -> str:
    """The text of a page, with its links as they are in the site. A file that is not a page becomes text alone.

    Raises:
        BrokenPage: a link names a file that does not exist.
    """

    def rewritten(link: re.Match[str]) -> str:
        target, _, anchor = link["target"].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return link[0]
        path = os.path.normpath(PurePosixPath(source).parent / target)
        if path in places:
            here = PurePosixPath(places[source]).parent
            return f"[{link['text']}]({os.path.relpath(places[path], here)}{anchor and '#'}{anchor})"
        if path.startswith("docs/reference/") and path.endswith(".md"):
            here = PurePosixPath(places[source]).parent
            return f"[{link['text']}]({os.path.relpath(path.removeprefix('docs/'), here)}{anchor and '#'}{anchor})"
        if not (ROOT / path).exists():
            raise BrokenPage(f"{source}: {link['target']} does not exist")
        return link["text"]

    return outside_of_code(text, lambda prose: LINK.sub(rewritten, prose))


def with_pictures(text: str, source: str) -> str:
    """The text of a page, with each SVG inside of it: there it has the colours of the page."""

    def inlined(picture: re.Match[str]) -> str:
        svg = (ROOT / source).parent / picture["target"]
        drawing = re.sub(r"\n\s*\n", "\n", svg.read_text(encoding="utf-8")).strip()
        return f'<figure class="picture" role="img" aria-label="{picture["text"]}">\n{drawing}\n</figure>'

    return PICTURE.sub(inlined, text)
