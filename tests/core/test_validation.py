"""Settings are checked where they are read, reach shards unchanged, and shards do not check them again."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from annotated_types import Ge
from onelane import config
from onelane.config import App
from onelane.core.validation import Check, Checked, Convert, Secret, changed, checked, from_json, to_json


def _even(number: int) -> int:
    if number % 2:
        raise ValueError("expected an even number")
    return number


@dataclass(frozen=True, kw_only=True)
class Door(Checked):
    width: Annotated[int, Ge(1), Check(_even)]
    colours: Annotated[frozenset[str], Convert(lambda text: frozenset(text.split()))] = frozenset()
    code: Secret = field(default_factory=lambda: Secret(""))


def test_what_is_read_is_compared_with_types_marks_and_functions() -> None:
    assert checked(Door, {"width": 2, "colours": "red blue", "code": "swordfish"}) == Door(
        width=2, colours=frozenset({"red", "blue"}), code=Secret("swordfish")
    )


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({}, "Field required"),
        ({"width": 0}, "greater than or equal to 1"),
        ({"width": 3}, "expected an even number"),
        ({"width": 2, "hight": 2}, "hight"),
        ({"width": 2, "code": 5}, "valid string"),
    ],
)
def test_a_fault_is_a_value_error_that_names_it(values: Mapping[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        checked(Door, values)


def test_a_secret_is_not_shown() -> None:
    assert "swordfish" not in f"{Door(width=2, code=Secret('swordfish'))!r} {Secret('swordfish')}"


def test_a_copy_with_other_values_leaves_the_first_as_it_was() -> None:
    door = Door(width=2)
    assert (changed(door, width=4), door) == (Door(width=4), Door(width=2))


FULL = {
    "services": ["a:B"],
    "listen": "127.0.0.1:7000",
    "keys": {"a.B/C": "name"},
    "config": {"number": 2**70, "nested": {"floats": [0.5, float("inf")]}},
    "stubs": {"a": {"methodConfig": [{"name": [{}], "timeout": "0.1s"}], "retryThrottling": {"maxTokens": 7}}},
    "tls": {"cert": "a", "key": "b", "client_ca": "c"},
    "state": {"store": "postgresql", "folder": "/var/state", "dsn": "postgresql://me:swordfish@x"},
    "auth": {
        "methods": {"*": ["admin"]},
        "mtls": {"CN=a": ["admin"]},
        "jwt": {"issuer": "i", "audience": "a", "keys_file": "k"},
    },
    "tail": {"slower_s": 2},
    "pins": {"apples": 0},
    "shards": 2,
}


def test_a_shard_gets_the_settings_that_its_supervisor_has_checked() -> None:
    app = config.parse({"apps": {"a": FULL}}).apps["a"]
    assert from_json(App, to_json(app)) == app


def test_settings_that_only_a_newer_release_knows_are_no_fault_of_a_shard() -> None:
    app = config.parse({"apps": {"a": FULL}}).apps["a"]
    assert from_json(App, to_json(app).replace('{"services"', '{"newer": 1, "services"', 1)) == app


def test_the_process_that_forks_shards_does_without_pydantic_and_the_variables_of_sysconfig() -> None:
    probe = "from onelane.shard import fork_server as s, process; import importlib, sys\n"
    probe += "[importlib.import_module(name) for name in s.PRELOADED]\n"
    probe += "print(sorted(name for name in sys.modules if name.startswith(('pydantic', '_sysconfigdata'))))"
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == "[]\n"
