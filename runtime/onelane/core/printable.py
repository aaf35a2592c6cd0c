"""Texts of clients and services without the control characters that a terminal or a reader of log lines interprets."""

from collections.abc import Callable

REPLACEMENT = "\ufffd"
"""By its number: a compiler that looks a name up imports `unicodedata`, which a process has then that compiled this
file, and no other."""


def escaped(text: str) -> str:
    """In one line: a control character as Python writes it, such as `\\x1b` or `\\n`."""
    return text if text.isprintable() else _without_controls(text, "\t", _escape)


def replaced(text: str) -> str:
    """With lines and tabs, for a terminal: each control character is a replacement character, of one column."""
    return text if text.isprintable() else _without_controls(text, "\n\t", lambda _: REPLACEMENT)


def _without_controls(text: str, allowed: str, substitute: Callable[[str], str]) -> str:
    return "".join(c if c.isprintable() or c in allowed else substitute(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
