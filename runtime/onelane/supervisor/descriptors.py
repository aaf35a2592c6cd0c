"""Open files: the limit of this process, and a reserve of descriptors for the starts of shards."""

import contextlib
import os
import resource
from collections.abc import Iterator, Mapping

RESERVE_SIZE = 16
"""Descriptors for the start of one shard: its control line, and the pipes of the event loop until it runs."""
PER_SHARD = 5
"""Descriptors of the supervisor for each shard: listening sockets and the control line."""
OTHERS = 64
"""Descriptors of a process for everything else that does not grow: its event loop, exporters, files it reads."""


def raise_limit() -> int:
    """Raise the limit of open files as far as the system allows, for the shards too; the limit that holds then."""
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
    return limit()


def limit() -> int:
    """The limit of open files of this process."""
    current, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return current if current != resource.RLIM_INFINITY else 2**31 - 1


def needed(shards: int) -> int:
    """Descriptors that a supervisor of so many shards needs, beside those of its admin connections."""
    return OTHERS + RESERVE_SIZE + PER_SHARD * shards


def shortages(open_files: int, shards: int, max_connections: Mapping[str, int]) -> list[str]:
    """What a limit of so many open files for each process is too low for. max_connections: of each app's shards."""
    faults = [
        f"a shard of {app} has room for some {max(0, open_files - OTHERS)} connections of its {connections}"
        for app, connections in max_connections.items()
        if open_files < connections + OTHERS
    ]
    if open_files < needed(shards):
        faults.append(f"the supervisor of {shards} shards needs some {needed(shards)}")
    return faults


class DescriptorReserve:
    """Descriptors that are held, on /dev/null, and given back to the system while a shard is started.

    So a shard starts also where the process has used up all others. Not promised: more than one start at a time.
    """

    def __init__(self, size: int = RESERVE_SIZE) -> None:
        self._size = size
        self._held: list[int] = []
        self._fill()

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Have `size` descriptors free, as far as the last refill could take them."""
        self.close()
        try:
            yield
        finally:
            self._fill()

    def close(self) -> None:
        while self._held:
            os.close(self._held.pop())

    def _fill(self) -> None:
        with contextlib.suppress(OSError):
            while len(self._held) < self._size:
                self._held.append(os.open(os.devnull, os.O_RDONLY))
