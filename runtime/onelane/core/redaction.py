"""What a fault or a log line may show of a value from a configuration, which may be a secret.

Promises: a table or a list is never shown, a text below `apps.NAME.config` never, and no value whose name looks like
that of a secret.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

_SECRET_WORD = re.compile(
    "(?:apikey|auth|authorization|bearer|cookie|credential|dsn|header|key|passphrase|passwd|password|pin|private|pwd"
    "|secret|session|signature|token|uri|url)s?",
    re.IGNORECASE,
)
"""Words in the name of a setting whose value is not shown. A URL or DSN often has a password in it."""
MAX_SHOWN_TEXT = 200
"""Characters of a text that are shown."""
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_USER_INFO = re.compile(r"(?<=//)[^/@\s]*@")


def looks_secret(place: Iterable[str]) -> bool:
    """Whether one of these names has a word of a secret: `db_password`, `apiKey`, `otlp-headers`."""
    return any(_SECRET_WORD.fullmatch(word) for name in place for word in _WORD.findall(name))


def shown(value: Any, *, is_secret: bool = False) -> str:
    """A value for a fault: a number or a short text itself, else only its type."""
    if value is None or (isinstance(value, bool | int | float) and not is_secret):
        return repr(value)
    if isinstance(value, str) and not is_secret and len(value) <= MAX_SHOWN_TEXT:
        return repr(without_user(value))
    return type_of(value)


def type_of(value: Any) -> str:
    """The type of a value in TOML's words."""
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a text"
    return "a list" if isinstance(value, list | tuple) else "another value"


def without_user(text: str) -> str:
    """A URL without its user and password."""
    return _USER_INFO.sub("…@", text)
