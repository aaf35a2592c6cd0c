"""An etcd of the tests' own: one member or three, in temporary folders, on ports of its own, or each on a host of
`tests/namespaces`."""

import json
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests import ports, tools
from tests.bounds import BOUND_S as BOUND_S
from tests.namespaces.network import Host

CLIENT_PORT, PEER_PORT = 2379, 2380
"""On a host, where nobody else has them."""


def program() -> str:
    """The path of etcd; skips where there is none."""
    return tools.program("etcd", "Debian's package etcd-server")


class EtcdServer:
    """One member, which can be stopped, killed, frozen and started again."""

    def __init__(
        self,
        folder: Path,
        port: int,
        peer_port: int,
        *,
        scheme: str = "http",
        name: str = "default",
        options: Sequence[str] = (),
        host: Host | None = None,
        authority: Path | None = None,
    ) -> None:
        """host: it runs there; by default on this one, at the loopback address. authority: that has signed its
        certificate."""
        address = "127.0.0.1" if host is None else host.address
        self.folder = folder
        self.url = f"{scheme}://{address}:{port}"
        self.peer_url = f"http://{address}:{peer_port}"
        self.name = name
        self.members: Sequence[EtcdServer] = [self]
        """All of its cluster."""
        self.options = options
        self.host = host
        self._authority = authority
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / "log"
        self._log_before = 0

    def start(self) -> None:
        """Start, and wait until it serves."""
        self.launch()
        self.wait_until_it_serves()

    def launch(self) -> None:
        # A short election, as there are few to vote; it is also what the shortest lease is made of: one second.
        options = ["--heartbeat-interval=10", "--election-timeout=50", "--unsafe-no-fsync", "--logger=zap"]
        if len(self.members) > 1:
            options[:2] = ["--heartbeat-interval=50", "--election-timeout=500"]
        urls = [f"--listen-client-urls={self.url}", f"--advertise-client-urls={self.url}"]
        urls += [f"--listen-peer-urls={self.peer_url}", f"--initial-advertise-peer-urls={self.peer_url}"]
        cluster = ",".join(f"{member.name}={member.peer_url}" for member in self.members)
        urls += [f"--name={self.name}", f"--initial-cluster={cluster}", f"--data-dir={self.folder}/data"]
        self._log_before = self._log.stat().st_size if self._log.exists() else 0
        within = () if self.host is None else self.host.within
        command = [*within, program(), *urls, *options]
        with self._log.open("ab") as file:
            self._process = subprocess.Popen([*command, *self.options], stderr=file, stdout=file)

    def wait_until_it_serves(self) -> None:
        """Its log says so, as its port may want a certificate."""
        assert self._process is not None
        deadline = time.monotonic() + BOUND_S
        while b"serving client traffic" not in self._log.read_bytes()[self._log_before :]:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(self._log.read_text())
            time.sleep(0.01)

    def leads(self) -> bool:
        """Whether it is the leader of its cluster."""
        status = self.ask("maintenance/status", "{}")
        return bool(status["leader"] == status["header"]["member_id"])

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Meanwhile it accepts connections, and does nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Kill it; what it has acknowledged is on disk."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(BOUND_S)

    def ask(self, path: str, body: str, token: str = "") -> Any:
        """One request of an operator."""
        headers = {"Authorization": token} if token else {}
        request = urllib.request.Request(f"{self.url}/v3/{path}", data=body.encode(), headers=headers)
        context = None if self._authority is None else ssl.create_default_context(cafile=self._authority)
        with urllib.request.urlopen(request, timeout=BOUND_S, context=context) as answer:
            return json.load(answer)


@contextmanager
def etcd(*options: str, host: Host | None = None, **details: Any) -> Iterator[EtcdServer]:
    """A new etcd of one member, running. details: see `EtcdServer`."""
    with ExitStack() as stack:
        server = _created(stack, options=options, host=host, **details)
        server.start()
        yield server


@contextmanager
def etcd_of_three(*options: str, hosts: Sequence[Host] = (), **details: Any) -> Iterator[Sequence[EtcdServer]]:
    """A new etcd of three members, running. hosts: of each of them; by default this one. details: see `EtcdServer`."""
    with ExitStack() as stack:
        members = [
            _created(stack, name=name, options=options, host=host, **details)
            for name, host in zip(("one", "two", "three"), hosts or (None, None, None), strict=True)
        ]
        for member in members:
            member.members = members
            member.launch()
        for member in members:
            member.wait_until_it_serves()
        yield members


def _created(stack: ExitStack, *, host: Host | None, **details: Any) -> EtcdServer:
    folder = tempfile.mkdtemp(prefix="onelane-etcd-")
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    if host is None:
        port, peer_port = (stack.enter_context(ports.reserved()) for _ in range(2))
    else:
        port, peer_port = CLIENT_PORT, PEER_PORT
    server = EtcdServer(Path(folder), port, peer_port, host=host, **details)
    stack.callback(server.stop)
    return server
