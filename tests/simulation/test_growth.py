"""What grows with the lanes is carried on to more of them than can be simulated."""

import pytest

from tests.simulation.change import ChangeOutcome
from tests.simulation.growth import COLUMNS, as_text, growths
from tests.simulation.machines import Row, Size


def row(machines: int, stall_s: float, calls: int, etcd_bytes: int, what: str = "comes") -> Row:
    outcome = ChangeOutcome(1.0, calls, 0, [], stall_s, etcd_bytes)
    return Row(what, Size(machines, 10, 1000), 10, 1.0, 1.0, outcome)


def test_what_is_too_much_first_is_at_the_top_with_the_lanes_from_which_it_is() -> None:
    rows = [row(10, 0.1, 7, 15_000), row(100, 1.0, 7, 150_000), row(200, 9.0, 1, 1, "goes")]
    rows += [row(10, 9.0, 10_000, 7, "fails"), row(100, 9.0, 1_000_000, 7, "fails")]
    costs = growths(rows)
    assert [(growth.cost.name, round(growth.power, 2)) for growth in costs] == [
        ("stall of every lane", 1.0),
        # Twice as many lanes make four times as many calls, of which each has twice as many.
        ("time of each lane for calls without keys", 1.0),
        ("stall of every lane", 1.0),
        ("entry in etcd", 1.0),
    ]
    assert [growth.breaks_at for growth in costs] == pytest.approx([50, 1250, 5000, 10_000])
    assert [growth.far for growth in costs] == pytest.approx([10.0, 0.4, 10.0, 1.5])
    assert {as_text(growth).count(" | ") for growth in costs} == {len(COLUMNS) - 1}


def test_one_size_tells_nothing_of_growth() -> None:
    assert growths([row(10, 0.1, 10_000, 15_000)]) == []
