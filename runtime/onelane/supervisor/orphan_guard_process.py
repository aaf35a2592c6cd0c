"""The process of an `OrphanGuard`: `python orphan_guard_process.py PIPE GRACE_S`. Learns the numbers of shards from the
pipe until the supervisor is gone; then ends those that have not ended in time.

Imports little, and of the standard library alone: it is there all the time, and does nothing.
"""

import os
import select
import signal
import sys
import time


def guard(pipe: int, grace_s: float) -> None:
    """Learn the numbers of shards until the supervisor is gone; then kill those that have not ended in time."""
    shards: set[int] = set()
    """Descriptors of processes."""
    lines = b""
    while data := _read(pipe, shards):
        *pids, lines = (lines + data).split(b"\n")
        for pid in pids:
            try:
                shards.add(os.pidfd_open(int(pid)))
            except OSError:
                # It has ended.
                continue
    until = time.monotonic() + grace_s
    while shards and (remaining_s := until - time.monotonic()) > 0:
        _forget_ended(shards, remaining_s)
    for shard in shards:
        signal.pidfd_send_signal(shard, signal.SIGKILL)


def _read(pipe: int, shards: set[int]) -> bytes:
    """What the supervisor sends next; b"" once it is gone."""
    while pipe not in _forget_ended(shards, None, pipe):
        pass
    return os.read(pipe, 4096)


def _forget_ended(shards: set[int], wait_s: float | None, *others: int) -> set[int]:
    """Wait until a shard ends, or one of `others` can be read; forget shards that have ended. Returns what is ready."""
    poll = select.poll()
    for descriptor in (*shards, *others):
        poll.register(descriptor, select.POLLIN)
    ready = {descriptor for descriptor, _ in poll.poll(None if wait_s is None else wait_s * 1000)}
    for shard in shards & ready:
        os.close(shard)
        shards.discard(shard)
    return ready


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Meant for the supervisor, with whose end the guard ends.
        signal.signal(number, signal.SIG_IGN)
    guard(int(sys.argv[1]), float(sys.argv[2]))
