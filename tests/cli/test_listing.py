"""A table shows every number whole, however narrow the terminal is; in a pipe it is columns of words."""

import io

import pytest
from onelane.cli.listing import Column, Listing
from rich.console import Console
from rich.text import Text

COLUMNS = (
    Column("shard", is_number=False),
    Column("state", is_number=False, rank=1),
    Column("calls"),
    Column("in flight", rank=2),
    Column("keys", is_number=False, rank=3),
)
CALLS = "123456789012"


def listing() -> Listing:
    table = Listing(COLUMNS)
    table.add("a-long-name-of-an-app-0", Text("ready", style="green"), CALLS, "8 192", "rooms=17,players=2048")
    table.add("b-0", "draining", "7", "0", "")
    return table


def shown(width: int, *, is_terminal: bool) -> str:
    output = io.StringIO()
    listing().show(Console(file=output, width=width, force_terminal=is_terminal, no_color=True, markup=False))
    return output.getvalue()


@pytest.mark.parametrize("width", [200, 80, 60, 40, 20, 5])
def test_no_number_is_cut_at_any_width(width: int) -> None:
    text = shown(width, is_terminal=True)
    assert CALLS in text
    assert "…" not in text


def test_names_are_folded_and_then_columns_left_out_by_their_rank() -> None:
    assert "rooms=17,players=2048" in shown(200, is_terminal=True)
    narrow = shown(42, is_terminal=True)
    assert "a-long-name-of-an-" in narrow
    assert "app-0 " in narrow
    assert "not shown at 42 columns: in flight, keys" in narrow


@pytest.mark.parametrize("width", [200, 20])
def test_in_a_pipe_every_row_has_a_word_for_each_column_and_nothing_else(width: int) -> None:
    rows = [line.split() for line in shown(width, is_terminal=False).splitlines()]
    assert rows == [
        ["shard", "state", "calls", "in_flight", "keys"],
        ["a-long-name-of-an-app-0", "ready", CALLS, "8192", "rooms=17,players=2048"],
        ["b-0", "draining", "7", "0", "-"],
    ]
