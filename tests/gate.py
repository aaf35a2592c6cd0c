"""A gate in which the handler of another process stands until the test lets it go."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.running_app import eventually


class Gate:
    """A named pipe: the echo service's orders `stall_at GATE` and `hold_at GATE` read it to its end."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "gate"
        os.mkfifo(self.path)
        self._fd = -1

    def __str__(self) -> str:
        return str(self.path)

    @asynccontextmanager
    async def occupied(self) -> AsyncIterator[None]:
        """Entered once a handler stands in the gate; at the end the handler goes on."""
        await eventually(self._has_reader)
        try:
            yield
        finally:
            os.close(self._fd)

    def _has_reader(self) -> bool:
        try:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            # ENXIO: nobody has opened it for reading.
            return False
        return True
