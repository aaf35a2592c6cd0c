"""Links from a page to the glossary: each word that it explains, at its first place on the page."""

import os
import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from docs.generator.blocks import outside_of_code

GLOSSARY = "concepts/glossary.md"
WORDS: Mapping[str, str] = {
    "durable": r"durable",
    "drain": r"drain(?:s|ed|ing)?",
    "epoch": r"epochs?",
    "fence": r"fences?",
    "hand-over": r"hand-overs?",
    "lane": r"lanes?",
    "lease": r"leases?",
    "listener": r"listeners?",
    "own-port": r"own ports?",
    "owner": r"owners?",
    "pin": r"pin(?:s|ned)?",
    "placement": r"placements?",
    "reminder": r"reminders?",
    "ring": r"ring",
    "shard": r"shards?",
    "sibling": r"siblings?",
    "stall": r"stalls?",
    "steering": r"steer(?:ed|ing)",
    "supervisor": r"supervisor",
    "tick": r"ticks?",
    "topology": r"topology",
    # The noun: "turns off" is none.
    "turn": r"turns?(?= of\b)|(?<=take )turns",
}
"""Heading of the glossary → the words that it explains."""
NOT_PROSE = re.compile(r"(!?\[[^\]]*\]\([^)]*\)|^#.*$|<[^>]+>)", re.MULTILINE)
"""Links, pictures, headings and HTML."""


def linked(text: str, place: str) -> str:
    """The text of the page at `place`, with its links."""
    target = os.path.relpath(GLOSSARY, PurePosixPath(place).parent)
    waiting = dict(WORDS)

    def link(prose: str) -> str:
        for heading, words in list(waiting.items()):
            linked_prose, count = re.subn(
                rf"(?<![\w\]-])({words})(?![\w-])", rf"[\1]({target}#{heading})", prose, count=1, flags=re.IGNORECASE
            )
            if count:
                del waiting[heading]
                # Not a second link within the first.
                return "".join(
                    part if number % 2 else link(part) for number, part in enumerate(NOT_PROSE.split(linked_prose))
                )
        return prose

    def change(prose: str) -> str:
        return "".join(part if number % 2 else link(part) for number, part in enumerate(NOT_PROSE.split(prose)))

    return outside_of_code(text, change)
