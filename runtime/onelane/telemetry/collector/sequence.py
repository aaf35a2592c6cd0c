"""Which reports of a shard are new, and whether all that it counted has come.

A shard numbers its reports from 1 and begins anew with each life. Promises: a report counts once, however often it
comes; what is missing is known by number, and a life that ended without its last report is known too.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class Received:
    """The reports of one shard's life. Owned by its supervisor."""

    newest: int = 0
    is_final: bool = False
    """Its last one has come: nothing was left behind."""

    def take(self, number: int, *, final: bool = False) -> int | None:
        """Take a report: how many before it have been lost, or None where it has been counted already."""
        if number <= self.newest:
            return None
        lost, self.newest = number - self.newest - 1, number
        self.is_final = final
        return lost
