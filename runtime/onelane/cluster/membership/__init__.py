"""Who is in an app, and so who owns what: a stream of placements. See supervised.py, static.py.

Plugs of the group `onelane.memberships`, chosen by name in the TOML.
"""

from collections.abc import AsyncIterator
from typing import Protocol

from onelane.core.placement import Placement


class Membership(Protocol):
    """Follows the placement of one app.

    Promised: the first view comes at once; epochs only grow; views may be skipped, never reordered.
    Not promised: that a member in the view is alive.
    """

    def offer(self, placement: Placement) -> None:
        """Take a placement that the supervisor names; one that is not newer is ignored."""

    def watch(self) -> AsyncIterator[Placement]:
        """Yield the placement now, then each newer one, until cancelled. Several may watch."""
