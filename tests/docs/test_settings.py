"""The reference of the settings is the code's."""

from dataclasses import dataclass, fields
from typing import Annotated

import pytest
from annotated_types import Ge, Le
from onelane.config import App
from onelane.core.validation import Check

from docs.generator import settings
from docs.generator.settings import Setting, Undocumented


@dataclass(frozen=True)
class Documented:
    limit: Annotated[int, Ge(1), Le(20_000)] | None = None
    """Calls at once."""


@dataclass(frozen=True)
class Silent:
    limit: int = 3


@dataclass(frozen=True)
class UnknownCheck:
    limit: Annotated[str, Check(str.upper)] = ""
    """Calls at once."""


def test_every_setting_of_an_app_has_its_heading() -> None:
    page = settings.page()
    assert [field.name for field in fields(App) if f"### {field.name} {{ #app-{field.name} }}" not in page] == []


def test_a_setting_is_told_with_its_range_and_its_default() -> None:
    expected = Setting("limit", "integer, at least 1, at most 20 000", "none", "Calls at once.")
    assert settings.settings_of(Documented) == [expected]


def test_a_setting_without_a_sentence_ends_the_build() -> None:
    with pytest.raises(Undocumented, match=r"Silent\.limit has no docstring"):
        settings.settings_of(Silent)


def test_a_check_that_has_no_words_ends_the_build() -> None:
    with pytest.raises(Undocumented, match="has no words for this check"):
        settings.settings_of(UnknownCheck)


@dataclass(frozen=True)
class UnknownType:
    limit: complex = 0j
    """Calls at once."""


def test_a_type_that_has_no_words_ends_the_build() -> None:
    with pytest.raises(Undocumented, match="has no words for this type"):
        settings.settings_of(UnknownType)


def test_a_table_that_an_app_may_have_is_on_the_page() -> None:
    assert "## [apps.NAME.cors] { #corssettings }" in settings.page()
    assert "a table, see [`[apps.NAME.state]`](#statesettings)" in settings.page()
