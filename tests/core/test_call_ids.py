"""The ids of calls inside a turn: the same whenever the turn is repeated, and those of no other."""

from onelane.core.call_ids import NestedIds

OUTER = ("app", "/bank.v1.Bank/Move", "k", "ann", "id")


def ids_of(*outer: str) -> list[str]:
    ids = NestedIds(*outer)
    return [
        ids.next(peer, method) for peer, method in (("", "s.S/A"), ("", "s.S/A"), ("", "s.S/B"), ("other", "s.S/A"))
    ]


def test_a_repeated_turn_gives_its_calls_the_same_ids_and_each_call_another() -> None:
    assert ids_of(*OUTER) == ids_of(*OUTER)
    assert len(set(ids_of(*OUTER))) == 4


def test_no_two_turns_have_an_id_in_common() -> None:
    others = [(*OUTER[:place], f"{OUTER[place]}x", *OUTER[place + 1 :]) for place in range(len(OUTER))]
    # What moves from one part to its neighbour makes another turn, too.
    turns = [OUTER, *others, ("app", "/bank.v1.Bank/Move", "ka", "nn", "id")]
    assert len({name for turn in turns for name in ids_of(*turn)}) == 4 * len(turns)


def test_calls_of_other_methods_change_no_id() -> None:
    ids = NestedIds(*OUTER)
    ids.next("", "s.S/B")
    assert [ids.next("", "s.S/A"), ids.next("", "s.S/A")] == ids_of(*OUTER)[:2]
