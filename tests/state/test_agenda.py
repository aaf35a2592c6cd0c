"""The agenda of a shard: a bounded window of the reminders that run next."""

import random

from onelane.state.agenda import Agenda
from onelane.state.store import DueReminder, StoredReminder


def due(at: float, key: str = "k", name: str = "a") -> DueReminder:
    return DueReminder(at, key, StoredReminder(name, at, b""))


def names(reminders: list[DueReminder]) -> list[float]:
    return [reminder.due for reminder in reminders]


def opened(until: float = 100.0, limit: int = 8) -> Agenda:
    agenda = Agenda(limit)
    agenda.add_page([], (until, "", ""))
    return agenda


def test_it_begins_by_reading() -> None:
    assert Agenda().wants_page(0.0)
    assert not opened(100.0).wants_page(99.0)
    assert opened(100.0).wants_page(100.0)


def test_what_is_due_is_taken_in_order_as_far_as_there_is_room() -> None:
    agenda = opened()
    for at in (30, 10, 20, 50):
        agenda.put(due(at, f"k{at}"))
    assert names(agenda.take(40, 2)) == [10, 20]
    assert names(agenda.take(40, 2)) == [30]
    assert (agenda.take(40, 2), agenda.next_at) == ([], 50)


def test_another_one_with_its_id_takes_its_place() -> None:
    agenda = opened()
    agenda.put(due(10))
    agenda.put(due(20))
    assert (names(agenda.take(15, 9)), names(agenda.take(25, 9))) == ([], [20])


def test_what_is_beyond_the_window_is_left_to_the_store() -> None:
    agenda = opened(until=100.0)
    agenda.put(due(101))
    assert (len(agenda), agenda.next_at) == (0, 100.0)


def test_one_that_is_set_to_beyond_the_window_leaves_it() -> None:
    agenda = opened(until=100.0)
    agenda.put(due(10))
    agenda.put(due(500))
    assert agenda.take(1000, 9) == []


def test_it_is_bounded_and_reads_the_rest_once_it_is_empty() -> None:
    agenda = opened(limit=2)
    for at in (30, 10, 20):
        agenda.put(due(at, f"k{at}"))
    assert names(agenda.take(40, 9)) == [10, 20]
    assert agenda.wants_page(40)
    assert agenda.until == (20, "k20", "a")


def test_one_that_runs_is_not_taken_from_a_page_again() -> None:
    agenda = opened()
    agenda.put(due(10))
    (running,) = agenda.take(10, 9)
    agenda.begin_again()
    agenda.add_page([due(10), due(11, "other")], (100.0, "", ""))
    assert names(agenda.take(20, 9)) == [11]
    agenda.ended(running)
    agenda.begin_again()
    agenda.add_page([due(10)], (100.0, "", ""))
    assert names(agenda.take(20, 9)) == [10]


def test_whatever_happens_the_store_and_the_window_agree() -> None:
    """Each reminder of a random history is taken at its time, in order, and once."""
    for seed in range(200):
        rng, agenda, stored = random.Random(seed), Agenda(limit=3), {}
        for now in range(60):
            for _ in range(rng.randrange(3)):
                reminder = due(now + rng.randrange(20), rng.choice("abcdefgh"))
                stored[reminder.key] = reminder
                agenda.put(reminder)
            if rng.random() < 0.2 and stored:
                key = rng.choice(list(stored))
                del stored[key]
                agenda.remove(key, "a")
            if rng.random() < 0.05:
                agenda.begin_again()
            taken = taken_now(agenda, stored, float(now))
            expected = sorted((r for r in stored.values() if r.due <= now), key=lambda r: r.place)
            assert taken == expected, seed
            for reminder in taken:
                agenda.ended(reminder)
                del stored[reminder.key]


def taken_now(agenda: Agenda, stored: dict[str, DueReminder], now: float) -> list[DueReminder]:
    """All that are taken, with pages of two of the store."""
    taken: list[DueReminder] = []
    while True:
        taken += agenda.take(now, 1)
        if agenda.wants_page(now):
            rest = sorted(stored.values(), key=lambda reminder: reminder.place)
            page = [r for r in rest if r.due < now + 5 and r.place > agenda.until][:2]
            agenda.add_page(page, page[-1].place if len(page) == 2 else (now + 5, "", ""))
        elif agenda.next_at > now:
            return taken
