"""Machines of a cluster under measurement: each an `onelane up` on this one, at an etcd that flushes each write."""

import os
import re
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

from onelane.core.cluster_settings import ClusterSettings, ClusterTls
from onelane.core.placement import Member, Placement

from tests.bench.load import Target
from tests.bench.shards import telemetry, toml_of
from tests.etcd import EtcdServer, etcd
from tests.machines import Certificates
from tests.running_app import RunningApp, descendants, running
from tests.supervisor.cluster_variables import environment_of, settings_of

APP = "echo"
ETCD_OPTIONS = ("--heartbeat-interval=100", "--election-timeout=1000", "--unsafe-no-fsync=false")
"""As etcd has them by itself; the tests' own are quicker."""


class BenchMachines:
    """Machines of one cluster, whose links are mutual TLS, and the etcd that they have for themselves."""

    def __init__(self, server: EtcdServer, folder: Path, otlp: str) -> None:
        """otlp: where traces and metrics go."""
        self.server = server
        self.apps: dict[str, RunningApp] = {}
        """Those that run, by the name of their machine."""
        self._folder = folder
        self._otlp = otlp
        self._certificates = Certificates(folder / "certificates")
        self._stacks: dict[str, ExitStack] = {}

    def settings_of(self, machine: str) -> ClusterSettings:
        files = self._certificates.links(machine).files
        assert files is not None
        tls = ClusterTls(ca=files.ca, cert=files.cert, key=files.key)
        return replace(settings_of(self.server, machine=machine, xds="127.0.0.1:0"), insecure=False, tls=tls)

    def start(self, machine: str, shards: int) -> float:
        """Seconds until it is ready: then its shards own their keys. Nothing is refused while placements change."""
        folder, stack = Path(mkdtemp(dir=self._folder)), ExitStack()
        variables = telemetry(self._otlp, 0.01) | environment_of(self.settings_of(machine))
        began = time.perf_counter()
        self.apps[machine] = stack.enter_context(
            running(folder, toml_of(shards, max_late_s=60), python=sys.executable, **variables)
        )
        self._stacks[machine] = stack
        return time.perf_counter() - began

    def kill(self, machine: str) -> None:
        """All processes of it at once, as if its power failed."""
        app, stack = self.apps.pop(machine), self._stacks.pop(machine)
        for pid in (app.process.pid, *descendants(app.process.pid)):
            os.kill(pid, signal.SIGKILL)
        stack.close()

    def stop(self) -> None:
        """All leave at the same time, so none waits for another."""
        for app in self.apps.values():
            app.process.send_signal(signal.SIGTERM)
        for stack in self._stacks.values():
            stack.close()

    @property
    def pids(self) -> list[int]:
        """Of all that serves, without etcd."""
        return [pid for machine in self.apps for pid in self.pids_of(machine)]

    def pids_of(self, machine: str) -> list[int]:
        supervisor = self.apps[machine].process.pid
        return [supervisor, *sorted(descendants(supervisor))]

    @property
    def members(self) -> list[Member]:
        """Of all machines."""
        rows = [row for app in self.apps.values() for row in app.shards(APP)]
        return [Member(row["name"], row["address"], "") for row in rows]

    def at_home(self) -> list[Target]:
        """Each shard, and a key of its own."""
        members = self.members
        placement = Placement(1, tuple(members))
        keys = {placement.owner_of(key).address: key for key in map(str, range(10_000))}
        return [Target(member.address, keys[member.address]) for member in members]

    def epoch(self) -> int:
        """As all machines see it; waits until they agree."""
        epochs: set[int] = set()
        while len(epochs) != 1 or any(app.is_changing(APP) for app in self.apps.values()):
            epochs = {int(app.status()["apps"][APP]["epoch"]) for app in self.apps.values()}
        return epochs.pop()

    def forwards(self) -> float:
        """Calls that shards of any machine have sent on, so far."""
        return sum(app.metric("onelane_forwards_total") for app in self.apps.values())

    def xds_address(self, machine: str) -> str:
        match = re.search(r"xds\.serves address=(\S+)", self.apps[machine].log.read_text())
        assert match is not None
        return match[1]

    def requests(self) -> float:
        """Requests to etcd so far, as it counts them itself."""
        with urllib.request.urlopen(f"{self.server.url}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("grpc_server_started_total"))


@contextmanager
def bench_machines(folder: Path, otlp: str) -> Iterator[BenchMachines]:
    """None runs yet."""
    with etcd(*ETCD_OPTIONS) as server:
        machines = BenchMachines(server, Path(mkdtemp(dir=folder)), otlp)
        try:
            yield machines
        finally:
            machines.stop()
