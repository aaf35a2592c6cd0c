"""The agenda of one shard: which of its reminders run next. Pure.

It holds a window, the reminders that run first of those in the store, so that its size is bounded however many there
are. `until` is the end of the window; what runs later is left to the store, and read once the window is empty and its
end has come.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from itertools import islice

from onelane.state.store import PAGE, DueReminder

Place = tuple[float, str, str]
"""Of a reminder in the order of all: Unix time, key, id."""
BEGINNING: Place = (float("-inf"), "", "")


class Agenda:
    """See the module. Owned by one lane."""

    def __init__(self, limit: int = 2 * PAGE) -> None:
        """limit: reminders in the window."""
        self.until = BEGINNING
        """The window has all that are at this place or before it."""
        self._limit = limit
        self._places: list[Place] = []
        self._reminders: dict[tuple[str, str], DueReminder] = {}
        """By key and id."""
        self._running: dict[tuple[str, str], DueReminder] = {}

    def __len__(self) -> int:
        return len(self._places)

    @property
    def next_at(self) -> float:
        """When there is something to do next, in Unix time."""
        return self._places[0][0] if self._places else self.until[0]

    def wants_page(self, now: float) -> bool:
        """Whether more is to be read from the store, after `until`."""
        return not self._places and self.until[0] <= now

    def begin_again(self) -> None:
        """Forget the window: the next page is the first. What runs goes on."""
        self.until = BEGINNING
        self._places.clear()
        self._reminders.clear()

    def add_page(self, reminders: Iterable[DueReminder], until: Place) -> None:
        """Take what the store has up to `until`, without the reminders of keys that other shards own."""
        self.until = until
        for reminder in reminders:
            if self._running.get((reminder.key, reminder.reminder.id)) != reminder:
                self.put(reminder)

    def put(self, reminder: DueReminder) -> None:
        """Take one that is in the store now, in place of an earlier one with its id."""
        self.remove(reminder.key, reminder.reminder.id)
        if reminder.place > self.until:
            return
        insort(self._places, reminder.place)
        self._reminders[reminder.key, reminder.reminder.id] = reminder
        if len(self._places) > self._limit:
            _, key, name = self._places.pop()
            del self._reminders[key, name]
            self.until = self._places[-1]

    def remove(self, key: str, name: str) -> None:
        """One that is in the store no more. name: its id."""
        reminder = self._reminders.pop((key, name), None)
        if reminder is not None:
            del self._places[bisect_left(self._places, reminder.place)]

    def take(self, now: float, room: int) -> list[DueReminder]:
        """Up to `room` reminders that are due, the earliest first; they run from now on, until they are `ended`."""
        due = [place for place in islice(self._places, room) if place[0] <= now]
        del self._places[: len(due)]
        taken = [self._reminders.pop((key, name)) for _, key, name in due]
        self._running |= {(reminder.key, reminder.reminder.id): reminder for reminder in taken}
        return taken

    def ended(self, reminder: DueReminder) -> None:
        """A run is over, whatever its outcome."""
        if self._running.get((reminder.key, reminder.reminder.id)) == reminder:
            del self._running[reminder.key, reminder.reminder.id]
