"""The part of a long content that fits a terminal, moved by keys."""

from rich.console import Console, Group, RenderableType
from rich.segment import Segment, Segments
from rich.text import Text

from onelane.cli.listing import lines_of

STEPS = {"up": -1, "k": -1, "down": 1, "j": 1}
PAGES = {"page up": -1, "b": -1, "page down": 1, " ": 1}
KEYS = "q ends, ↑ ↓ PgUp PgDn scroll"


class Viewport:
    """Where in the content the terminal's first line is."""

    def __init__(self) -> None:
        self.first = 0
        self._last_first = 0
        """Of the last content that was shown: the first line with which its end is seen."""
        self._height = 1

    def follow(self, key: str) -> bool:
        """Move by a key; whether it is one that moves."""
        targets = {name: self.first + step for name, step in STEPS.items()}
        targets |= {name: self.first + step * self._height for name, step in PAGES.items()}
        targets |= {"home": 0, "g": 0, "end": self._last_first, "G": self._last_first}
        if key not in targets:
            return False
        self.first = max(0, min(targets[key], self._last_first))
        return True

    def show(
        self, content: RenderableType, console: Console, width: int, height: int, *, fault: str = ""
    ) -> RenderableType:
        """The lines of `content` that are seen, and the keys, or a fault, in the last line."""
        lines = [piece for line in lines_of(content, console) for piece in _folded(line, width)]
        self._height = max(1, height - 1)
        self._last_first = max(0, len(lines) - self._height)
        self.first = min(self.first, self._last_first)
        seen = lines[self.first : self.first + self._height]
        below = len(lines) - self.first - len(seen)
        keys = KEYS + (f", {below} more lines" if below else "")
        foot = Text(fault or keys, style="red" if fault else "dim", no_wrap=True, overflow="ellipsis")
        newline = Segment.line()
        return Group(Segments([segment for line in seen for segment in [*line, newline]]), foot)


def _folded(line: list[Segment], width: int) -> list[list[Segment]]:
    """A line in pieces that fit the terminal."""
    length = Segment.get_line_length(line)
    if length <= width:
        return [line]
    return list(Segment.divide(line, [*range(width, length, width), length]))
