"""Values of any type become attribute values that OpenTelemetry allows."""

from enum import StrEnum

from onelane.telemetry.values import attribute_value


def test_a_value_whose_str_raises_becomes_the_name_of_its_type() -> None:
    class Shy(str):
        def __str__(self) -> str:
            raise RuntimeError

    class Mute:
        def __str__(self) -> str:
            raise RuntimeError

    converted = [attribute_value(value) for value in (Shy("x"), Mute(), 2**63, 2**20_000, [[1], Mute()])]
    assert [str(value).rpartition(".")[2] for value in converted[:2]] == ["x", "Mute>"]
    assert converted[2] == str(2**63)
    assert converted[3] == "<int>"
    assert converted[4][0] == "[1]"
    assert type(converted[0]) is str


def test_values_of_any_type_become_types_that_opentelemetry_allows() -> None:
    class Size(int):
        pass

    class Colour(StrEnum):
        RED = "red"

    values = [True, 3, 0.5, "x", Size(4), Colour.RED, (1, Colour.RED), b"raw", None]
    converted = [attribute_value(value) for value in values]
    assert converted == [True, 3, 0.5, "x", 4, "red", [1, "red"], "b'raw'", "None"]
    assert {type(value) for value in converted} == {bool, int, float, str, list}
