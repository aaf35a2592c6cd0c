"""What of a refused value is shown: numbers and short texts, unless they may be secrets."""

import pytest
from onelane.core import redaction


@pytest.mark.parametrize("name", ["db_password", "API_KEY", "apiKey", "X-Authorization", "otlp-headers", "HTTPToken"])
def test_a_name_with_a_word_of_secrets_looks_secret(name: str) -> None:
    assert redaction.looks_secret(["db", name])


@pytest.mark.parametrize("name", ["limit", "monkey", "broken", "greeting", "author"])
def test_a_name_that_only_contains_the_letters_of_such_a_word_does_not(name: str) -> None:
    assert not redaction.looks_secret([name])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        ("plain", "'plain'"),
        ("redis://me:swordfish@cache:1", "'redis://…@cache:1'"),
        ("x" * 201, "a text"),
        ({"token": "swordfish"}, "a table"),
        (["swordfish"], "a list"),
    ],
)
def test_only_plain_and_short_values_are_shown(value: object, text: str) -> None:
    assert redaction.shown(value) == text


@pytest.mark.parametrize(("value", "text"), [(1234, "a number"), (True, "a boolean"), ("swordfish", "a text")])
def test_of_a_secret_the_type_is_shown(value: object, text: str) -> None:
    assert redaction.shown(value, is_secret=True) == text
