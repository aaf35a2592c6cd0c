"""The services' own settings are one frozen, typed object; every fault is named, and differences hide texts."""

import traceback
from dataclasses import dataclass
from typing import Annotated

import pytest
from onelane.errors import BadConfig
from onelane.shard.settings import Settings, build_settings, differences
from pydantic import BaseModel, ConfigDict, Field

from tests.echo.settings import EchoSettings

KIND = "tests.echo.settings:EchoSettings"


class Model(BaseModel):
    """A pydantic model whose field has another name in the file."""

    model_config = ConfigDict(frozen=True)

    limit: int = Field(1, alias="max-limit")


class OpenModel(Model):
    """A model that takes settings of any name."""

    model_config = ConfigDict(frozen=True, extra="allow")


@dataclass(frozen=True)
class Login:
    """A dataclass that refuses its values as a whole."""

    user: str
    password: str = ""
    pin: Annotated[int, Field(le=99)] = 0

    def __post_init__(self) -> None:
        if self.password == "swordfish":
            raise ValueError("this password is known to everybody")


def test_settings_without_a_type_are_attributes_and_cannot_be_changed() -> None:
    config = build_settings(None, {"a": 1, "b": {"c": [1, 2]}}, app="x")
    assert (config.a, config.b.c, config["a"], list(config)) == (1, (1, 2), 1, ["a", "b"])
    with pytest.raises(AttributeError, match=r"config\.a cannot be set: change the file, and reload it"):
        config.a = 2
    with pytest.raises(AttributeError, match=r"config has no 'd'; it has \['a', 'b'\]"):
        config.d  # noqa: B018 - the access is what is tested


def test_typed_settings_are_checked_with_every_fault_by_name() -> None:
    assert build_settings(KIND, {"limit": 3}, app="x") == EchoSettings(limit=3)
    with pytest.raises(BadConfig) as caught:
        build_settings(KIND, {"limit": 0, "greeting": 7, "unknown": 1}, app="x")
    message = str(caught.value)
    assert "apps.x.config" in message
    assert "limit: Input should be greater than or equal to 1, seen 0" in message
    assert "greeting: Input should be a valid string, seen 7" in message
    assert f"unknown: is not a setting of {KIND}" in message


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"user": "me", "password": "swordfish"}, "it: this password is known to everybody"),
        ({"password": "swordfish"}, "user: Field required"),
        ({"user": "me", "password": ["swordfish"]}, "password: Input should be a valid string, seen a list"),
        ({"user": "me", "pin": 70912345}, "pin: Input should be less than or equal to 99, seen a number"),
        ({"user": "me", "pin": "swordfish"}, "pin: Input should be a valid integer, .*, seen a text"),
    ],
)
def test_refused_settings_show_no_text_and_no_secret(values: dict[str, object], fault: str) -> None:
    with pytest.raises(BadConfig, match=fault) as caught:
        build_settings(f"{__name__}:Login", values, app="x")
    shown = "".join(traceback.format_exception(caught.value))
    assert "swordfish" not in shown
    assert "70912345" not in shown


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("tests.echo.settings:NotFrozen", "expected a frozen dataclass"),
        ("tests.echo.settings:Nothing", "is None, expected a frozen dataclass"),
        ("tests.nowhere:Settings", "no module 'tests.nowhere'"),
    ],
)
def test_a_type_that_is_no_frozen_dataclass_is_named_in_the_fault(kind: str, fault: str) -> None:
    with pytest.raises(BadConfig, match=fault):
        build_settings(kind, {}, app="x")


def test_a_difference_of_a_secret_number_is_hidden() -> None:
    assert differences({"door": {"pin": 1}}, {"door": {"pin": 2}}) == ["door.pin: changed"]


def test_differences_show_numbers_and_hide_texts() -> None:
    old = {"a": 1, "b": {"c": True, "secret": "x"}, "old": 1}
    new = {"a": 2, "b": {"c": False, "secret": "y"}, "new": "z"}
    assert differences(old, new) == ["a: 1 → 2", "b.c: True → False", "b.secret: changed", "new: new", "old: removed"]
    assert differences(Settings(old)._values, old) == []


def test_a_pydantic_model_is_built_by_the_names_that_it_has_in_the_file() -> None:
    assert build_settings(f"{__name__}:Model", {"max-limit": 3}, app="x").limit == 3
    with pytest.raises(BadConfig, match="other: is not a setting of"):
        build_settings(f"{__name__}:Model", {"max-limit": 3, "other": 1}, app="x")
    assert build_settings(f"{__name__}:OpenModel", {"max-limit": 3, "other": 1}, app="x").other == 1


def test_a_setting_that_appears_or_disappears_is_a_difference() -> None:
    assert differences({"a": {"b": 1}}, {"c": 1}) == ["a: removed", "c: new"]
    assert differences({"a": 1}, {"a": {"b": 1}}) == ["a: changed"]
    assert differences({"a": {"b": 1}}, {"a": {"b": 1}}) == []
