"""The sequence numbers of a shard's reports: which report is new, which are lost, and whether the final one arrived.

A shard's process numbers its reports from 1. Promises: a report counts once, however often it arrives; lost reports
are known by number, and so is a process that ended without its final report.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class ReportSequence:
    """The reports received from one process of a shard. Owned by the supervisor."""

    life: int = 0
    """The number of the process; the newer one of two has the higher number."""
    newest: int = 0
    """The number of the last report; 0 before the first."""
    is_final: bool = False
    """The final report arrived: every count was reported."""

    def take(self, number: int, *, final: bool = False) -> int | None:
        """Record a report: the number of reports lost before it, or None for a duplicate."""
        if number <= self.newest:
            return None
        lost, self.newest = number - self.newest - 1, number
        self.is_final = final
        return lost
