"""An etcd of the tests' own: one member, in a temporary folder, on ports of its own."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests import ports, tools

BOUND_S = 20.0


class EtcdServer:
    """One member, which can be stopped, killed, frozen and started again."""

    def __init__(self, folder: Path, port: int, peer_port: int, scheme: str, options: Sequence[str]) -> None:
        self.folder = folder
        self.url = f"{scheme}://127.0.0.1:{port}"
        self._peer_url = f"http://127.0.0.1:{peer_port}"
        self.options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it serves: its log says so, as its port may want a certificate."""
        # A short election, as there is nobody to vote; it is also what the shortest lease is made of: one second.
        options = ["--heartbeat-interval=10", "--election-timeout=50", "--unsafe-no-fsync", "--logger=zap"]
        urls = [f"--listen-client-urls={self.url}", f"--advertise-client-urls={self.url}"]
        urls += [f"--listen-peer-urls={self._peer_url}", f"--initial-advertise-peer-urls={self._peer_url}"]
        urls += [f"--initial-cluster=default={self._peer_url}", f"--data-dir={self.folder}/data"]
        log = self.folder / "log"
        before = log.stat().st_size if log.exists() else 0
        with log.open("ab") as file:
            program = tools.program("etcd", "Debian's package etcd-server")
            self._process = subprocess.Popen([program, *urls, *options, *self.options], stderr=file, stdout=file)
        deadline = time.monotonic() + BOUND_S
        while b"serving client traffic" not in log.read_bytes()[before:]:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(log.read_text())
            time.sleep(0.01)

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
        with urllib.request.urlopen(request, timeout=BOUND_S) as answer:
            return json.load(answer)


@contextmanager
def etcd(*options: str, scheme: str = "http") -> Iterator[EtcdServer]:
    """A new etcd, running."""
    with ExitStack() as stack:
        folder = tempfile.mkdtemp(prefix="onelane-etcd-")
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        port, peer_port = (stack.enter_context(ports.reserved()) for _ in range(2))
        running = EtcdServer(Path(folder), port, peer_port, scheme, options)
        stack.callback(running.stop)
        running.start()
        yield running
