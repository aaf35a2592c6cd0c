"""The services' own settings are one frozen, typed object; every fault is named, and differences hide texts."""

import pytest
from onelane.errors import BadConfig
from onelane.shard.settings import Settings, build, differences

from tests.echo.settings import EchoSettings

KIND = "tests.echo.settings:EchoSettings"


def test_settings_without_a_type_are_attributes_and_cannot_be_changed() -> None:
    config = build(None, {"a": 1, "b": {"c": [1, 2]}}, app="x")
    assert (config.a, config.b.c, config["a"], list(config)) == (1, (1, 2), 1, ["a", "b"])
    with pytest.raises(AttributeError, match=r"config\.a cannot be set: change the file, and reload it"):
        config.a = 2
    with pytest.raises(AttributeError, match=r"config has no 'd'; it has \['a', 'b'\]"):
        config.d  # noqa: B018 - the access is what is tested


def test_typed_settings_are_checked_with_every_fault_by_name() -> None:
    assert build(KIND, {"limit": 3}, app="x") == EchoSettings(limit=3)
    with pytest.raises(BadConfig) as caught:
        build(KIND, {"limit": 0, "greeting": 7, "unknown": 1}, app="x")
    message = str(caught.value)
    assert "apps.x.config" in message
    assert "limit: Input should be greater than or equal to 1, seen 0" in message
    assert "greeting: Input should be a valid string, seen 7" in message
    assert f"unknown: is not a setting of {KIND}" in message


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
        build(kind, {}, app="x")


def test_differences_show_numbers_and_hide_texts() -> None:
    old = {"a": 1, "b": {"c": True, "secret": "x"}, "gone": 1}
    new = {"a": 2, "b": {"c": False, "secret": "y"}, "new": "z"}
    assert differences(old, new) == ["a: 1 → 2", "b.c: True → False", "b.secret: changed", "gone: gone", "new: new"]
    assert differences(Settings(old)._values, old) == []
