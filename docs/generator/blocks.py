"""Code blocks of a page of Markdown, and the prose between them."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

FENCE = re.compile(r"^( *)(`{3,})([^`\n]*)\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
FILE_NAME = re.compile(r"(?:#|//) (\S+\.(?:py|proto|toml))$")


class Block(NamedTuple):
    """A code block."""

    language: str
    text: str
    line: int
    """In its page."""

    @property
    def file(self) -> str:
        """The file that its first line names, else empty."""
        name = FILE_NAME.match(self.text.partition("\n")[0])
        return name[1] if name else ""


def blocks_of(page: str) -> Iterator[Block]:
    for fence in FENCE.finditer(page):
        indentation = len(fence[1])
        text = "".join(line[indentation:] or "\n" for line in fence[4].splitlines(keepends=True))
        yield Block(fence[3].strip(), text, page.count("\n", 0, fence.start()) + 2)


def outside_of_code(page: str, change: Callable[[str], str]) -> str:
    """The page, with its prose changed and its code as it is, also the code inside of a sentence."""
    parts: list[str] = []
    end = 0
    for fence in FENCE.finditer(page):
        parts += [_outside_of_inline(page[end : fence.start()], change), fence[0]]
        end = fence.end()
    return "".join([*parts, _outside_of_inline(page[end:], change)])


def _outside_of_inline(prose: str, change: Callable[[str], str]) -> str:
    """Inline code is put aside while the prose is changed: a link may have code as its text."""
    codes: list[str] = []

    def put_aside(code: re.Match[str]) -> str:
        codes.append(code[0])
        return f"\0{len(codes) - 1}\0"

    changed = change(INLINE.sub(put_aside, prose))
    return re.sub(r"\0(\d+)\0", lambda mark: codes[int(mark[1])], changed)
