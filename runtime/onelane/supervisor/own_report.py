"""What this machine says of itself, as it joins its cluster and as it stays: its record to the other machines, and its
trouble to people."""

import logging
from collections.abc import Mapping
from dataclasses import replace

from onelane.cluster.coordination.members import CLOCKS_APART_S
from onelane.cluster.machines import AppPart, MachineRecord, with_clock
from onelane.core.placement import Member

log = logging.getLogger("onelane.supervisor")


class OwnReport:
    """Owned by `Machine`, which has it written; `Joining` reads it and adds to it."""

    def __init__(self, record: MachineRecord) -> None:
        self.record = record
        """As it is to be written."""
        self.trouble = ""
        """Why this machine has no lease, or why the last renewal has failed."""

    def announce(self, apps: Mapping[str, tuple[Member, ...]], parts: Mapping[str, AppPart] | None) -> bool:
        """Name these lives, by their app, and their parts in placements; None: as before. Whether that is news."""
        before = self.record
        self.record = replace(before, apps=apps, parts=before.parts if parts is None else parts)
        return self.record != before

    def look_at_clock(self, ahead_s: float | None) -> None:
        """Tell where our wall clock is wrong, or the store's, and the others where it has been set. ahead_s: of the
        store's."""
        record = with_clock(self.record, ahead_s)
        if record is self.record:
            return
        self.record = record
        if abs(record.ahead_s or 0.0) > CLOCKS_APART_S:
            name, words = record.name, "set the wrong one, as by NTP: reminders and identities go by it"
            log.warning("machine.clock_differs name=%s ahead_of_etcd_s=%d %s", name, record.ahead_s, words)
