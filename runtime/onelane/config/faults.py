"""What is wrong with a file, from the errors of its check: the place, its line or variable, what was seen."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from onelane.config.app import App
from onelane.config.configuration import Config
from onelane.core import redaction
from onelane.core.cluster_settings import ClusterSettings

NEEDED: Mapping[tuple[str, ...], str] = {
    ("cluster", "name"): "; expected a name that all machines of this cluster have, and no other cluster of its etcd",
    ("cluster", "etcd"): '; expected the client addresses of etcd, such as ["https://10.0.0.5:2379"]',
    ("cluster", "advertise"): "; expected the address or name by which the other machines reach this one",
}
"""What is to be there, where that is not plain by the name."""
_APP_SETTINGS, _FILE_SETTINGS, _CLUSTER_SETTINGS = (
    {setting.name for setting in fields(kind)} for kind in (App, Config, ClusterSettings)
)
_OPEN_SETTINGS = (_APP_SETTINGS | _FILE_SETTINGS) - {"admin_token"}
"""Settings of the file whose values are no secrets, whatever their names look like: max_key_bytes."""


def faults_of(errors: Sequence[Any], text: str, variables: Mapping[tuple[str, ...], str]) -> list[str]:
    """One fault for each place: a value that fits none of several types would be reported for each of them."""
    faults: dict[str, str] = {}
    for error in errors:
        place, problem = _fault(error)
        name = ".".join(place) or "the file"
        if name in faults:
            faults[name] += f", or: {problem}"
            continue
        variable = next((variable for key, variable in variables.items() if key == tuple(place[: len(key)])), "")
        line = None if variable else _line_of(place, text)
        origin = f"{variable}: " if variable else f"line {line}: " if line else ""
        faults[name] = f"{origin}{name}: {problem}"
    return list(faults.values())


def _fault(error: Any) -> tuple[list[str], str]:
    """Place and text of one error of pydantic's."""
    place = [str(part) for part in error["loc"] if part not in ("literal['auto']", "constrained-int", "int")]
    problem = error["msg"].removeprefix("Value error, ")
    if error["type"] == "unexpected_keyword_argument":
        known = {"apps": _APP_SETTINGS, "cluster": _CLUSTER_SETTINGS}.get(place[0], _FILE_SETTINGS)
        from difflib import get_close_matches

        near = get_close_matches(place[-1], known, n=1)
        problem = "is not a setting" + (f"; did you mean {near[0]!r}?" if near else "")
    elif error["type"] == "missing":
        problem = "is missing" + NEEDED.get(tuple(place), "")
    elif error["type"] == "dataclass_type":
        problem = f"Input should be a valid dictionary or instance of {error['ctx']['class_name']}{_seen(place, error)}"
    else:
        problem += _seen(place, error)
    return place, problem


def _seen(place: list[str], error: Any) -> str:
    """The refused value, where it may be shown."""
    value = error["input"]
    if not place or (error["type"] == "value_error" and not isinstance(value, str | int | float)):
        return ""
    names = place[2:] if place[0] == "apps" else place
    # A url may have a password, which is not for there.
    is_secret = names[:1] == ["config"] or (place[:2] == ["cluster", "etcd"] and "@" in str(value))
    is_secret = is_secret or redaction.looks_secret(name for name in names if name not in _OPEN_SETTINGS)
    return f", seen {redaction.shown(value, is_secret=is_secret)}"


def _line_of(place: list[str], text: str) -> int | None:
    """The line that sets `place`, else the line of its table's header. Python's TOML parser gives no positions."""
    table: list[str] = []
    best = None
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+([^\]]+)\]", line):
            table = [part.strip(" \"'") for part in header[1].split(".")]
            best = number if table == place[: len(table)] and len(table) > 1 else best
        elif setting := re.match(r"\s*[\"']?([^\s\"'=]+)[\"']?\s*=", line):
            here = [*table, *setting[1].split(".")]
            if here == place[: len(here)]:
                return number
    return best
