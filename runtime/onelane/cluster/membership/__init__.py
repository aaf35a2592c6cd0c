"""The members of an app, and thus the owners of its keys: a stream of placements. See supervised.py, static.py.

Plugs of the group `onelane.memberships`, chosen by name in the TOML.
"""

from collections.abc import AsyncIterator
from typing import Protocol

from onelane.core.placement import Placement


class Membership(Protocol):
    """Follows the placement of one app.

    Promised: the first placement comes at once; epochs only grow; placements may be skipped, never reordered.
    Not promised: that a member of the placement is alive.
    """

    def offer(self, placement: Placement) -> None:
        """Take a placement from the supervisor; one that is not newer is ignored."""

    def watch(self) -> AsyncIterator[Placement]:
        """Yield the placement now, then each newer one, until cancelled. Several tasks may watch."""
