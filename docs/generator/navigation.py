"""The navigation of the site: how-tos that it does not list come last among the how-tos."""

import json
from pathlib import Path

from docs.generator.assembly import DOCS

LAST_OF_HOW_TOS = "    # The other pages of how-to/.\n"


def completed(settings: str) -> str:
    """The text of zensical.toml, with every page of how-to/ in it."""
    pages = sorted(page for page in (DOCS / "how-to").glob("*.md") if f'"how-to/{page.name}"' not in settings)
    lines = [f'        {{ {json.dumps(title_of(page))} = "how-to/{page.name}" }},\n' for page in pages]
    return settings.replace(LAST_OF_HOW_TOS, "".join(lines))


def title_of(page: Path) -> str:
    return page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ").replace("`", "")
