"""`python delays.py LEAST_S MOST_S SEED TUN:RAW...`: holds every packet of some hosts for a while, as a long way does.

The kernel of the tests may lack `tc netem`; this needs no more than its TUN devices. The routes of a host to those that
are far lead into one; what comes out of it waits here, and is sent by a raw socket of the same host, bound to its real
interface: so the rules of `network` apply as to any packet. Packets overtake each other, as their waits differ.

Runs until its standard input ends, and until all that it holds is sent. By `network.Network.delayed`.
"""

import heapq
import os
import select
import socket
import sys
import time
from collections.abc import Sequence
from random import Random

MAX_PACKET_BYTES = 65535
MAX_HELD = 20_000
"""More packets are lost, as where a queue on the way is full."""
IPV4, TARGET = 4, slice(16, 20)


def main(least_s: float, most_s: float, seed: str, ways: dict[int, socket.socket]) -> None:
    """ways: from the TUN device of each host to its raw socket."""
    rng, held, number = Random(seed), list[tuple[float, int, socket.socket, bytes]](), 0
    waiting = select.poll()
    for tun in ways:
        os.set_blocking(tun, False)
        waiting.register(tun, select.POLLIN)
    waiting.register(sys.stdin.fileno(), select.POLLIN | select.POLLHUP)
    is_wanted = True
    while is_wanted or held:
        pause_ms = max(0.0, held[0][0] - time.monotonic()) * 1000 if held else None
        # Not sooner than a packet is due.
        ready = [file for file, _ in waiting.poll(None if pause_ms is None else int(pause_ms) + (pause_ms > 0))]
        now = time.monotonic()
        for file in ready:
            if file == sys.stdin.fileno():
                is_wanted = False
                waiting.unregister(file)
                continue
            for packet in _packets(file):
                if len(held) < MAX_HELD and packet[0] >> 4 == IPV4:
                    number += 1
                    heapq.heappush(held, (now + rng.uniform(least_s, most_s), number, ways[file], packet))
        while held and held[0][0] <= now:
            _send(*heapq.heappop(held)[2:])


def _packets(tun: int) -> Sequence[bytes]:
    """All that wait in it now."""
    packets = []
    try:
        while True:
            packets.append(os.read(tun, MAX_PACKET_BYTES))
    except BlockingIOError:
        return packets


def _send(way: socket.socket, packet: bytes) -> None:
    try:
        way.sendto(packet, (socket.inet_ntoa(packet[TARGET]), 0))
    except OSError:
        # A rule of its host drops it, or nobody is there: it is lost, and its sender is not told.
        return


if __name__ == "__main__":
    _least, _most, _seed, *_ways = sys.argv[1:]
    _pairs = [tuple(map(int, way.split(":"))) for way in _ways]
    main(float(_least), float(_most), _seed, {tun: socket.socket(fileno=raw) for tun, raw in _pairs})
