"""Hosts of a test, each a network namespace with one interface on a bridge, and what becomes of packets between them.

The bridge is a namespace as well, so this machine gets one interface for each network, and nothing else of it: the
tests' own end, by which they reach every host. All names have the pid of the tests' process; a network whose process is
no more, as it was killed, is removed before the next one is made.
"""

import fcntl
import ipaddress
import itertools
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from ctypes import CDLL, get_errno
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests import tools
from tests.bounds import BOUND_S
from tests.running_app import is_running

NAMESPACES = Path("/run/netns")
NAME = re.compile(r"onelane-(\d+)-\d+(-\w+)?")
"""Of a namespace of tests: the pid of their process, which of its networks, and which host of it."""
ADDRESSES = ipaddress.IPv4Network("198.18.0.0/15")
"""For networks that only test something (RFC 2544): nothing else is reached by them. Each network has 256."""
LOCK = Path("/run/onelane-namespaces.lock")
"""Held while a network is made: two of them must not choose the same addresses."""
CLONE_NEWNET = 0x40000000
TUN = Path("/dev/net/tun")
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x1, 0x1000
DELAYS = Path(__file__).with_name("delays.py")
Opened = TypeVar("Opened")
_numbers = itertools.count()


@dataclass(frozen=True)
class Host:
    """One namespace, its address on the bridge, and the processes in it."""

    name: str
    namespace: str
    address: str

    @property
    def file(self) -> Path:
        """Of the namespace."""
        return NAMESPACES / self.namespace

    @property
    def within(self) -> tuple[str, ...]:
        """Before a command: it runs here, with the pid that the command would have."""
        return ("nsenter", f"--net={self.file}", "--")

    def socket(self, kind: socket.SocketKind, protocol: int = 0) -> socket.socket:
        """An IPv4 socket of this namespace, for a test that is outside of it."""
        return self.opened(lambda: socket.socket(socket.AF_INET, kind, protocol))

    def opened(self, opening: Callable[[], Opened]) -> Opened:
        """What this function opens where it is called within this namespace."""
        opened: list[Opened] = []

        def enter_and_open() -> None:
            with self.file.open() as file:
                # Only this thread is elsewhere from here on; `os.setns` is there from CPython 3.12 on.
                if CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
                    raise OSError(get_errno(), f"setns to {self.namespace}")
            opened.append(opening())

        thread = threading.Thread(target=enter_and_open)
        thread.start()
        thread.join(BOUND_S)
        return opened[0]

    @property
    def pids(self) -> list[int]:
        """The processes in it."""
        own = self.file.stat().st_ino
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [pid for pid in pids if _namespace_of(pid) == own]

    def kill(self) -> None:
        """End all its processes at one moment, as a loss of power does."""
        while pids := self._stop():
            _send(pids, signal.SIGKILL)
            while any(is_running(pid) for pid in pids):
                os.sched_yield()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Meanwhile no process of it does anything, as where a machine is paused."""
        pids = self._stop()
        try:
            yield
        finally:
            _send(pids, signal.SIGCONT)

    def _stop(self) -> list[int]:
        """The processes that were stopped, among them those that others were about to start."""
        stopped: list[int] = []
        while starting := [pid for pid in self.pids if pid not in stopped]:
            _send(starting, signal.SIGSTOP)
            stopped += starting
        return stopped


def _namespace_of(pid: int) -> int:
    with suppress(OSError):
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    return 0


def _send(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@dataclass(frozen=True)
class Rule:
    """A rule of iptables, in a host."""

    host: Host
    text: str

    def add(self) -> None:
        self._ask("--append")

    def remove(self) -> None:
        self._ask("--delete")

    def _ask(self, what: str) -> None:
        table, chain, rest = self.text.split(maxsplit=2)
        _run([*self.host.within, "iptables", "-w", "-t", table, what, chain, *rest.split()])

    @property
    def packets(self) -> int:
        """How many it has been applied to. It is the only one of its chain that a test asks for."""
        table, chain, rest = self.text.split(maxsplit=2)
        lines = _run([*self.host.within, "iptables", "-w", "-t", table, "-v", "-S", chain]).splitlines()
        wanted = set(rest.split())
        counted = [line.split() for line in lines if wanted <= set(line.replace("/32", "").split())]
        return sum(int(words[words.index("-c") + 1]) for words in counted)


class Network:
    """See the module. By `new_network()`."""

    def __init__(self, name: str, addresses: ipaddress.IPv4Network) -> None:
        self.name = name
        self._free = addresses.hosts()
        self._length = addresses.prefixlen
        self.address = str(next(self._free))
        """Of the tests' own end."""
        self.hosts: list[Host] = []

    @property
    def interface(self) -> str:
        """The tests' end."""
        return _interface_of(self.name)

    def create(self) -> None:
        """Skips where this machine, a container for example, can make no namespace."""
        added = subprocess.run(["ip", "netns", "add", self.name], capture_output=True, text=True, timeout=BOUND_S)
        if added.returncode:
            tools.absent(f"no network namespace can be made here: {added.stderr.strip()}")
        _ip(
            f"link add {self.interface} type veth peer name tests netns {self.name}",
            f"addr add {self.address}/{self._length} dev {self.interface}",
            f"link set {self.interface} up",
        )
        _ip("link add name bridge type bridge", "link set bridge up", *self._joined("tests"), within=self.name)

    def _joined(self, interface: str) -> list[str]:
        return [f"link set dev {interface} master bridge", f"link set dev {interface} up"]

    def host(self, name: str) -> Host:
        """A new host. name: letters and digits, at most 15."""
        host = Host(name, f"{self.name}-{name}", str(next(self._free)))
        _ip(f"netns add {host.namespace}")
        self.hosts.append(host)
        _ip(
            "link set lo up",
            f"link add name eth0 type veth peer name {name} netns {self.name}",
            f"addr add {host.address}/{self._length} dev eth0",
            "link set eth0 up",
            within=host.namespace,
        )
        _ip(*self._joined(name), within=self.name)
        return host

    def remove(self) -> None:
        for host in self.hosts:
            host.kill()
        _remove([*(host.namespace for host in self.hosts), self.name])

    # What is done to packets

    @contextmanager
    def cut_one_way(self, source: Host, target: Host) -> Iterator[Rule]:
        """Meanwhile nothing that `source` sends comes to `target`. What `target` sends does come."""
        with self._ruled(Rule(target, f"filter INPUT -s {source.address} -j DROP")) as rule:
            yield rule

    @contextmanager
    def cut(self, hosts: Sequence[Host], others: Sequence[Host]) -> Iterator[None]:
        """Meanwhile no packet comes from one of these to one of the others, or back."""
        with ExitStack() as stack:
            for host, other in itertools.product(hosts, others):
                stack.enter_context(self.cut_one_way(host, other))
                stack.enter_context(self.cut_one_way(other, host))
            yield

    @contextmanager
    def isolated(self, host: Host) -> Iterator[Rule]:
        """Meanwhile nothing that it sends leaves it."""
        with self._ruled(Rule(host, "filter OUTPUT -o eth0 -j DROP")) as rule:
            yield rule

    @contextmanager
    def lossy(self, source: Host, target: Host, share: float) -> Iterator[Rule]:
        """Meanwhile this share of the packets that `source` sends `target` is lost, at random."""
        chance = f"-m statistic --mode random --probability {share:.11f}"
        with self._ruled(Rule(target, f"filter INPUT -s {source.address} {chance} -j DROP")) as rule:
            yield rule

    @contextmanager
    def delayed(
        self, sources: Sequence[Host], targets: Sequence[Host | str], *, least_s: float, most_s: float, seed: str
    ) -> Iterator[None]:
        """Meanwhile each packet that one of these hosts sends to one of those (or to an address) comes so much later,
        and may overtake others. Those that are under way at the end do come. Skips where there are no TUN devices."""
        if not TUN.exists():
            tools.absent(f"packets cannot be delayed here: {TUN} is missing")
        with ExitStack() as stack:
            ways: list[str] = []
            routes: list[tuple[Host, str]] = []
            files: list[int] = []
            for source in sources:
                tun, device = source.opened(_new_tun)
                raw = source.socket(socket.SOCK_RAW, socket.IPPROTO_RAW)
                stack.callback(os.close, tun)
                stack.enter_context(raw)
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
                ways.append(f"{tun}:{raw.fileno()}")
                files += [tun, raw.fileno()]
                addresses = [target if isinstance(target, str) else target.address for target in targets]
                # The address of its own is that of eth0, as this device has none.
                to_targets = [f"{address}/32 dev {device} src {source.address}" for address in addresses]
                routes += [(source, route) for route in to_targets if not route.startswith(f"{source.address}/")]
                _ip(f"link set {device} txqueuelen 5000 up", within=source.namespace)
            command = [sys.executable, "-I", str(DELAYS), str(least_s), str(most_s), seed, *ways]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=files)
            try:
                for source, route in routes:
                    _ip(f"route add {route}", within=source.namespace)
                yield
                assert process.poll() is None, "what holds the packets has ended"
            finally:
                for source, route in routes:
                    _run(["ip", "-n", source.namespace, "route", "flush", *route.split()[:3]])
                # It goes on until all that it holds is sent.
                process.communicate(timeout=BOUND_S)

    @contextmanager
    def _ruled(self, rule: Rule) -> Iterator[Rule]:
        rule.add()
        try:
            yield rule
        finally:
            rule.remove()


@contextmanager
def new_network() -> Iterator[Network]:
    """A network without hosts, removed at the end with all that runs in it. Skips where there can be none."""
    _need_namespaces()
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove_abandoned()
        network = Network(f"onelane-{os.getpid()}-{next(_numbers)}", _free_addresses())
        with ExitStack() as stack:
            stack.callback(network.remove)
            network.create()
            fcntl.flock(lock, fcntl.LOCK_UN)
            yield network


def _new_tun() -> tuple[int, str]:
    """A device of this thread's namespace whose packets are read from a file: it, and its name. It goes with that."""
    file = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
    described = fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", b"delay%d", IFF_TUN | IFF_NO_PI))
    return file, described[:16].rstrip(b"\0").decode()


def remove_abandoned() -> None:
    """Remove the networks of tests that were killed."""
    names = [path.name for path in NAMESPACES.iterdir()] if NAMESPACES.exists() else []
    abandoned = [name for name in names if (match := NAME.fullmatch(name)) and not is_running(int(match[1]))]
    for name in abandoned:
        Host(name, name, "").kill()
    _remove(abandoned)


def _need_namespaces() -> None:
    for program, package in (("ip", "iproute2"), ("iptables", "iptables"), ("nsenter", "util-linux")):
        tools.program(program, f"Debian's package {package}")
    need_root()


def need_root() -> None:
    """Skips where this process may make no namespaces."""
    if os.geteuid() != 0:
        tools.absent("machines as network namespaces need root")


def _interface_of(network: str) -> str:
    """At most 15 characters."""
    return network.replace("onelane-", "ol")


def _free_addresses() -> ipaddress.IPv4Network:
    rows = json.loads(_run(["ip", "-json", "-4", "addr", "show"]))
    used = {ipaddress.ip_address(info["local"]) for row in rows for info in row["addr_info"]}
    return next(subnet for subnet in ADDRESSES.subnets(new_prefix=24) if not any(address in subnet for address in used))


def _remove(namespaces: Sequence[str]) -> None:
    """Those that are there, and the tests' ends, which the kernel would remove some time after them."""
    for name in namespaces:
        if Path("/sys/class/net", interface := _interface_of(name)).exists():
            _run(["ip", "link", "del", interface])
        if (NAMESPACES / name).exists():
            _run(["ip", "netns", "del", name])


def _ip(*commands: str, within: str = "") -> None:
    _run(["ip", *(("-n", within) if within else ()), "-batch", "-"], input="\n".join(commands))


def _run(command: Sequence[str], **options: Any) -> str:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, capture_output=True, text=True, timeout=BOUND_S, **options
    )
    if done.returncode:
        raise AssertionError(f"{' '.join(command)} {options.get('input', '')!r}: {done.stderr.strip()}")
    return done.stdout
