"""What a connection costs that only stands there."""

import re
import socket
from pathlib import Path

from tests import frames
from tests.bench.shards import Shards

CONNECTIONS = 3_000
FIRST = 200
"""They pay for what all share, and are not counted."""


def kib_per_connection(app: Shards) -> float:
    """KiB of the only shard's memory for each of many connections that have said hello."""
    socks: list[socket.socket] = []
    try:
        socks += [_stand(app.listen) for _ in range(FIRST)]
        before = _rss_kib(app.shard_pids[0])
        socks += [_stand(app.listen) for _ in range(CONNECTIONS)]
        return (_rss_kib(app.shard_pids[0]) - before) / CONNECTIONS
    finally:
        for sock in socks:
            sock.close()


def _stand(address: str) -> socket.socket:
    """One connection whose settings and ours are acknowledged."""
    host, _, port = address.rpartition(":")
    sock = socket.create_connection((host, int(port)), timeout=10)
    acknowledged = frames.frame(frames.SETTINGS, flags=frames.ACK)
    sock.sendall(frames.HELLO + acknowledged)
    seen = b""
    while acknowledged not in seen:
        piece = sock.recv(4096)
        if not piece:
            raise RuntimeError(f"{address} closed an idle connection")
        seen += piece
    return sock


def _rss_kib(pid: int) -> int:
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1])
