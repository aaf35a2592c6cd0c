"""The simulation is the real code, and its seed decides everything."""

import pytest

from tests.simulation.__main__ import COLUMNS, as_text
from tests.simulation.machines import Row, Size, rows

SMALL = Size(machines=3, lanes=2, keys=1500, points=64)


@pytest.fixture(scope="module")
def small() -> dict[str, Row]:
    return {row.what: row for row in rows(SMALL, seed=1)}


def test_every_key_that_moves_arrives_once(small: dict[str, Row]) -> None:
    """A key that is lost is waited for by the change, which then does not end; that is asserted in it."""
    assert {what: len(row.outcome.pauses) for what, row in small.items()} == {
        "comes": small["comes"].moved,
        "goes": small["goes"].moved,
        "fails": 0,
    }
    assert small["goes"].moved == small["fails"].moved


def test_a_machine_that_comes_or_goes_moves_about_its_share_of_the_keys(small: dict[str, Row]) -> None:
    assert small["comes"].moved == pytest.approx(SMALL.keys / 4, rel=0.4)
    assert small["goes"].moved == pytest.approx(SMALL.keys / 3, rel=0.4)


def test_a_machine_that_fails_is_given_up_when_its_lease_has_run_out(small: dict[str, Row]) -> None:
    assert 5.0 * 2 / 3 < small["fails"].outcome.seconds < 5.0 + 0.5 + 0.1


def test_the_same_seed_is_the_same_run(small: dict[str, Row]) -> None:
    assert {row.what: row for row in rows(SMALL, seed=1)} == small
    assert {row.what: row.outcome.seconds for row in rows(SMALL, seed=2)} != {
        what: row.outcome.seconds for what, row in small.items()
    }


def test_a_row_has_a_cell_for_each_column(small: dict[str, Row]) -> None:
    for row in small.values():
        assert as_text(row).count(" | ") == len(COLUMNS) - 1
