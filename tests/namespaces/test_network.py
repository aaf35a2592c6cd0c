"""A partition cuts what it says and nothing else, and nothing of a network is left, whatever becomes of its tests."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.bounds import BOUND_S
from tests.namespaces.network import NAMESPACES, Host, Network, new_network
from tests.running_app import ROOT, is_running

pytestmark = pytest.mark.slow
PORT = 7000


class Datagrams:
    """A host that is sent datagrams, and sends some."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._socket = host.socket(socket.SOCK_DGRAM)
        self._socket.bind((host.address, PORT))
        self._socket.settimeout(BOUND_S)

    def send(self, target: "Datagrams", text: str) -> None:
        self._socket.sendto(text.encode(), (target.host.address, PORT))

    def receive(self) -> str:
        """The next one, in time."""
        return self._socket.recv(100).decode()

    def pending(self) -> int:
        """How many have come, and were not received; they are thrown away."""
        count = 0
        self._socket.setblocking(False)
        with suppress(BlockingIOError):
            while self._socket.recv(100):
                count += 1
        self._socket.settimeout(BOUND_S)
        return count

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with new_network() as network:
        for name in ("a", "b", "c"):
            network.host(name)
        yield network


@pytest.fixture
def ends(network: Network) -> Iterator[list[Datagrams]]:
    ends = [Datagrams(host) for host in network.hosts]
    yield ends
    for end in ends:
        end.close()


def reaches(source: Datagrams, target: Datagrams) -> bool:
    """By something that is received, where nothing stands against it."""
    source.send(target, source.host.name)
    return target.receive() == source.host.name


def test_every_host_reaches_every_other(ends: list[Datagrams]) -> None:
    assert all(reaches(source, target) for source in ends for target in ends if source is not target)


def test_what_is_cut_one_way_comes_the_other_way(network: Network, ends: list[Datagrams]) -> None:
    a, b, c = ends
    with network.cut_one_way(a.host, b.host) as rule:
        a.send(b, "lost")
        while rule.packets < 1:
            time.sleep(0.001)
        assert all([reaches(b, a), reaches(a, c), reaches(c, b)])
        assert b.pending() == 0
    assert reaches(a, b)


def test_a_partition_cuts_both_ways_and_only_between_its_sides(network: Network, ends: list[Datagrams]) -> None:
    a, b, c = ends
    with network.cut([a.host], [b.host, c.host]):
        for source, target in ((a, b), (b, a), (a, c), (c, a)):
            source.send(target, "lost")
        assert reaches(b, c)
        assert reaches(c, b)
        connection = a.host.socket(socket.SOCK_STREAM)
        connection.setblocking(False)
        # A host that is there would refuse it at once.
        assert connection.connect_ex((b.host.address, PORT)) != 0
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        connection.close()
    assert reaches(a, b)
    assert [end.pending() for end in ends] == [0, 0, 0]


def test_a_share_of_the_packets_is_lost_at_random(network: Network, ends: list[Datagrams]) -> None:
    a, b, _ = ends
    with network.lossy(a.host, b.host, 0.5) as rule:
        for number in range(200):
            a.send(b, str(number))
        received = 0
        while received + rule.packets < 200:
            received += b.pending()
    assert 0 < received < 200


def test_what_is_delayed_comes_later_one_way_and_all_of_it(network: Network, ends: list[Datagrams]) -> None:
    a, b, c = ends
    with network.delayed([a.host], [b.host], least_s=0.2, most_s=0.3, seed="0"):
        sent_at = time.monotonic()
        for number in range(50):
            a.send(b, str(number))
        assert all([reaches(b, a), reaches(a, c), reaches(c, b)])
        arrived = [b.receive()]
        assert time.monotonic() - sent_at >= 0.2
        arrived += [b.receive() for _ in range(49)]
        # They have overtaken each other.
        assert sorted(arrived, key=int) == [str(number) for number in range(50)] != arrived
        # A rule holds for what is sent late, too.
        with network.isolated(a.host) as rule:
            a.send(b, "lost")
            while rule.packets < 1:
                time.sleep(0.001)
        a.send(b, "late")
    # All that it held was sent by now.
    assert b.receive() == "late"
    assert reaches(a, b)


def test_a_connection_goes_on_as_its_ways_become_long_and_short_again(network: Network) -> None:
    a, b, _ = network.hosts
    with b.socket(socket.SOCK_STREAM) as listening, a.socket(socket.SOCK_STREAM) as client:
        listening.bind((b.address, PORT))
        listening.listen()
        client.connect((b.address, PORT))
        accepted, _ = listening.accept()
        sent = os.urandom(1 << 20)
        with network.delayed([a, b], [a, b], least_s=0.01, most_s=0.03, seed="0"):
            received = _sent(client, accepted, sent)
        received += _sent(client, accepted, sent)
        accepted.close()
    assert received == sent + sent


def _sent(source: socket.socket, target: socket.socket, data: bytes) -> bytes:
    """What comes of it."""
    sending = threading.Thread(target=source.sendall, args=(data,))
    sending.start()
    target.settimeout(BOUND_S)
    received = b""
    while len(received) < len(data) and (chunk := target.recv(1 << 16)):
        received += chunk
    sending.join(BOUND_S)
    return received


def test_the_tests_reach_a_host_and_are_reached(network: Network, ends: list[Datagrams]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.settimeout(BOUND_S)
        own.bind((network.address, 0))
        own.sendto(b"hello", (ends[0].host.address, PORT))
        assert ends[0].receive() == "hello"
        other = ends[1].host.socket(socket.SOCK_DGRAM)
        other.sendto(b"hello", own.getsockname())
        other.close()
        assert own.recvfrom(100)[1][0] == ends[1].host.address


STARTS_OTHERS = [
    sys.executable,
    "-c",
    "import os, signal\nos.fork()\nos.write(1, b'%d\\n' % os.getpid())\nsignal.pause()",
]


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_all_processes_of_a_host_are_frozen_go_on_and_are_killed(network: Network) -> None:
    host = network.hosts[0]
    process = subprocess.Popen([*host.within, *STARTS_OTHERS], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = sorted(int(process.stdout.readline()) for _ in range(2))
    assert (process.pid in pids, sorted(host.pids)) == (True, pids)
    with host.frozen():
        while {state_of(pid) for pid in pids} != {"T"}:
            os.sched_yield()
    while "T" in {state_of(pid) for pid in pids}:
        os.sched_yield()
    host.kill()
    assert process.wait(BOUND_S) == -signal.SIGKILL
    assert not any(is_running(pid) for pid in pids)
    assert host.pids == []
    process.stdout.close()


def leftovers(name: str) -> list[str]:
    """Namespaces and interfaces of a network."""
    links = json.loads(subprocess.run(["ip", "-json", "link"], capture_output=True, check=True).stdout)
    interfaces = [row["ifname"] for row in links if row["ifname"] == name.replace("onelane-", "ol")]
    return [path.name for path in NAMESPACES.iterdir() if path.name.startswith(name)] + interfaces


def test_nothing_is_left_of_a_network_that_has_ended_also_by_an_error() -> None:
    making = new_network()
    network = making.__enter__()
    host = network.host("a")
    process = subprocess.Popen([*host.within, "sleep", "1000"])
    # One that has not entered it yet is not of it.
    while process.pid not in host.pids:
        os.sched_yield()
    assert len(leftovers(network.name)) == 3
    error = RuntimeError("of the test")
    assert not making.__exit__(RuntimeError, error, None)
    assert process.wait(BOUND_S) == -signal.SIGKILL
    assert leftovers(network.name) == []


KILLED = """
import os, subprocess, sys
from tests.namespaces.network import new_network
with new_network() as network:
    host = network.host("a")
    process = subprocess.Popen([*host.within, "sleep", "1000"], stdout=subprocess.DEVNULL)
    while process.pid not in host.pids:
        os.sched_yield()
    while not host.pids: pass
    print(network.name, process.pid, flush=True)
    sys.stdin.read()
"""


def test_the_network_of_tests_that_were_killed_is_removed_before_the_next_one_is_made() -> None:
    tests = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert tests.stdout is not None
    assert tests.stdin is not None
    name, pid = tests.stdout.readline().split()
    tests.kill()
    tests.wait(BOUND_S)
    tests.stdout.close()
    tests.stdin.close()
    assert len(leftovers(name)) == 3
    assert is_running(int(pid))
    with new_network() as other:
        assert leftovers(name) == []
        assert not is_running(int(pid))
        assert len(leftovers(other.name)) == 2


def test_where_a_program_is_missing_tests_are_skipped_and_in_ci_they_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="ip is not installed"), new_network():
        pass
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="in CI nothing may be skipped"), new_network():
        pass
