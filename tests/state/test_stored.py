"""What the commands see and change of a stored app is the same whatever the store."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from onelane.core.state_settings import StateSettings
from onelane.core.validation import Secret
from onelane.state.stored import stored_state
from onelane.state.stored_changes import changing

from tests.state.places import AT, StorePlace, at_place, cart, full, write


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StorePlace]:
    with at_place(request, tmp_path, request.param) as place:
        yield place


def test_what_is_put_and_dropped_is_seen_and_outlives_the_claims_of_the_last_life(place: StorePlace) -> None:
    settings = StateSettings(store=place.kind, folder=place.folder, dsn=Secret(place.dsn))
    store = place.open(life=7)
    store.commit([full("a", epoch=4), write("b", b"old", epoch=4)], at=AT)
    store.load(["c"], epoch=4, at=AT)
    store.close()
    with changing(settings, "lobby") as changes:
        changes.put({"b": [cart(b"new")], "c": [cart(b"first")]})
        changes.drop("links", ["a"])
    with stored_state(settings, "lobby") as stored:
        rows = {key: [row.dict_name for row in state.rows] for state in stored.states() for key in [state.key]}
        assert rows == {"a": ["carts"], "b": ["carts"], "c": ["carts"]}
        assert [row.value for _, row in stored.rows("carts", "b")] == [b"new"]
        (state,) = stored.states("a")
        assert (len(state.answers), len(state.reminders)) == (2, 2)
        assert stored.newest() == (4, 8)
