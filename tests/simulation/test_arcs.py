"""Arcs say of each key what the placements themselves say."""

from collections import Counter

from tests.simulation.arcs import Arcs
from tests.simulation.machines import Size, placement

KEYS = 3000


def test_arcs_have_the_owners_that_the_placements_have_for_each_key() -> None:
    size = Size(machines=3, lanes=2, keys=KEYS, points=8)
    placements = [placement(size, machines, machines) for machines in (2, 3, 4)]
    arcs = Arcs(placements)
    keys_of_arc, moving = arcs.spread(KEYS)
    names = [f"key-{number}" for number in range(KEYS)]
    for each in placements:
        assert arcs.counts(each, keys_of_arc) == Counter(each.owner_of(name).life for name in names)
    owners = {name: tuple(each.owner_of(name).life for each in placements) for name in names}
    assert [name for name, _ in moving] == [name for name in names if len(set(owners[name])) > 1]
    assert all(owners[name] == tuple(arcs.owners[each.epoch][arc] for each in placements) for name, arc in moving)


def test_a_key_past_the_last_position_belongs_to_the_first_arc() -> None:
    lone = placement(Size(machines=1, lanes=1, keys=0, points=1), 1, 1)
    keys_of_arc, moving = Arcs([lone]).spread(50)
    assert (keys_of_arc, moving) == ([50], [])
