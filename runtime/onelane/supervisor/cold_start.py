"""What an app has stored, as its supervisor starts: no file is missing, all is in the files of the shards that it has
now, no other supervisor has it, and the stamp that the next placement must be above.

Promises: an app that has stored nothing pays nothing: no file is opened or made, no module of a store is imported.
"""

import fcntl
import logging
import os
import sys
import time
from collections.abc import Callable

from onelane.config import App
from onelane.core.placement import Placement
from onelane.core.state_settings import MEMORY, SQLITE
from onelane.errors import NotThere, OnelaneError, StoreRefused

log = logging.getLogger("onelane.supervisor")
SETTLE_TOLD_S = 5.0
"""Between two lines of the log on the progress of a long start."""


class StartStopped(OnelaneError):
    """The supervisor is to end while it settles what an app has stored: the next start goes on with that."""


class ColdStart:
    """See the module. Its methods block."""

    def __init__(
        self,
        app: str,
        settings: App,
        placement: Placement,
        *,
        accepts_missing: bool = False,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """accepts_missing: go on without files that other files know of; their keys have no state then. is_stopping:
        the supervisor is to end; asked between two pages of keys, from the thread of the call."""
        self._app = app
        self._settings = settings
        self._state = settings.state
        self._placement = placement
        self._accepts_missing = accepts_missing
        self._is_stopping = is_stopping
        self._lock: int | None = None
        self._told_at = time.monotonic()

    def newest_epoch(self) -> int:
        """The highest epoch in all that is stored, once it is complete and settled; 0 where there is nothing.

        Raises:
            StoreRefused: a file is missing, or not this app's; or another supervisor has the files.
            StoreUnavailable: the disk is full, or the server does not answer.
            StartStopped: the supervisor is to end.
        """
        if self._state.store == MEMORY:
            return 0
        if self._state.store == SQLITE:
            self.lock()
            if self._lock is None:
                return 0
            self._settle()
        from onelane.state.stored import stored_state

        try:
            with stored_state(self._state, self._app) as stored:
                return stored.newest().epoch
        except NotThere:
            return 0

    def lock(self) -> None:
        """Take the folder of the files for this supervisor, where there is one; the system frees it with the process.

        Raises:
            StoreRefused: another supervisor has it.
        """
        folder = self._state.folder
        if self._state.store != SQLITE or self._lock is not None or not (folder / self._app).is_dir():
            return
        path = folder / f".{self._app}.lock"
        lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            seen = "another supervisor that runs the app on these files"
            raise StoreRefused(str(folder / self._app), seen=seen, expected="one supervisor for one folder") from error
        self._lock = lock

    def close(self) -> None:
        """Free the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _settle(self) -> None:
        """Move what is in files of shards that are no more to the owners of its keys. What another shard of now has is
        loaded from its file by the owner."""
        from onelane.state.settle import check_complete, settle
        from onelane.state.sqlite_store import shards_in

        folder = self._state.folder
        check_complete(folder, self._app, accepts_missing=self._accepts_missing)
        names = {member.name for member in self._placement.members}
        # With other members, of other machines, their keys are not for the files here.
        if shards_in(folder, self._app) <= names or self._settings.membership == "static":
            return
        began_at = time.monotonic()
        settled = settle(folder, self._app, self._placement, at=time.time(), progress=self._tell)
        if sys.stderr.isatty():
            sys.stderr.write("\n")
        seconds = time.monotonic() - began_at
        log.info("state.settled app=%s keys=%d moved=%d seconds=%.1f", self._app, settled.keys, settled.moved, seconds)

    def _tell(self, looked_at: int, of: int) -> None:
        if self._is_stopping():
            raise StartStopped(f"{looked_at} of {of} keys of {self._app} are settled; the next start goes on")
        if sys.stderr.isatty():
            sys.stderr.write(f"\ronelane: {self._app} has other shards now: {looked_at} of {of} keys settled")
            sys.stderr.flush()
        elif time.monotonic() > self._told_at + SETTLE_TOLD_S:
            self._told_at = time.monotonic()
            log.info("state.settling app=%s keys=%d of=%d", self._app, looked_at, of)
