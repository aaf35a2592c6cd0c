"""`python -m docs.generator [FOLDER]`: the site of the documentation in FOLDER/site; by default build/docs/site.

A warning of zensical, such as a link to a page or a heading that does not exist, is an error.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from docs.generator import navigation
from docs.generator.assembly import DOCS, ROOT, assembled


def build(folder: Path) -> int:
    """Write the pages and the site into `folder`, which is emptied first. Returns zensical's exit code."""
    shutil.rmtree(folder, ignore_errors=True)
    for path, text in assembled().items():
        page = folder / "pages" / path
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8")
    shutil.copytree(DOCS / "assets", folder / "pages" / "assets")
    shutil.copytree(DOCS / "theme", folder / "theme")
    (folder / "zensical.toml").write_text(navigation.completed((DOCS / "zensical.toml").read_text(encoding="utf-8")))
    return subprocess.run([sys.executable, "-m", "zensical", "build", "--strict", "--clean"], cwd=folder).returncode


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "docs"))
