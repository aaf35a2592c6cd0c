"""Servers with durable state of their own, asked over HTTP/1.1: Restate, and Cloudflare's workerd. See npm/build.sh.

Each is set up as it is fastest here: Restate with two partitions, and its service, a Python program on uvicorn, called
over HTTP/1.1; workerd with a Durable Object for each key, whose counter is a row in its SQLite.
"""

import json
import os
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import Popen
from time import monotonic, sleep

from tests.bench.load import Target
from tests.bench.peers import peer
from tests.ports import reserved
from tests.running_app import ROOT

HERE = ROOT / "tests" / "bench" / "npm"
RESTATE = "Restate, 2 partitions, WAL with fsync, a journal entry per call"
WORKERD = "workerd, a Durable Object with ctx.storage.sql, its output gate"
PATIENCE_S = 60.0

Peer = tuple[list[Target], list[int]]
"""Where it is asked for each key, and its processes."""


@contextmanager
def restate(modules: Path, folder: Path, keys: Sequence[str]) -> Iterator[Peer]:
    """Restate's server and the service behind it."""
    with ExitStack() as stack:
        node, ingress, admin = (f"127.0.0.1:{stack.enter_context(reserved())}" for _ in range(3))
        (program,) = modules.glob("@restatedev/restate-server-*/bin/restate-server")
        server = stack.enter_context(
            _running(
                [program, "--config-file", HERE / "restate.toml", "--base-dir", folder, "--node-name", "bench"],
                folder,
                RESTATE_BIND_ADDRESS=node,
                RESTATE_INGRESS__BIND_ADDRESS=ingress,
                RESTATE_ADMIN__BIND_ADDRESS=admin,
            )
        )
        service, pid = stack.enter_context(peer("restate"))
        _post(f"http://{admin}/deployments", {"uri": f"http://{service}", "use_http_11": True})
        targets = [Target(ingress, key, url=f"http://{ingress}/Counter/{key}/add") for key in keys]
        _wait_served(targets)
        yield targets, [server.pid, pid]


@contextmanager
def workerd(modules: Path, folder: Path, keys: Sequence[str]) -> Iterator[Peer]:
    """Cloudflare's runtime; one process."""
    with ExitStack() as stack:
        address = f"127.0.0.1:{stack.enter_context(reserved())}"
        (program,) = modules.glob("@cloudflare/workerd-*/bin/workerd")
        (folder / "objects").mkdir(parents=True)
        where = (f"--directory-path=disk={folder / 'objects'}", f"--socket-addr=http={address}")
        server = stack.enter_context(_running([program, "serve", HERE / "workerd.capnp", *where], folder))
        targets = [Target(address, key, url=f"http://{address}/{key}") for key in keys]
        _wait_served(targets)
        yield targets, [server.pid]


@contextmanager
def _running(command: Sequence[str | Path], folder: Path, **environment: str) -> Iterator["Popen[bytes]"]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("wb") as log:
        process = Popen(command, stdout=log, stderr=log, env=os.environ | environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def _wait_served(targets: Sequence[Target]) -> None:
    for target in targets:
        _post(target.url)


def _post(url: str, body: object = None) -> None:
    """Ask until it is answered: the server may be starting. body: as JSON; without one no content type is sent, which a
    handler without input refuses."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"} if data else {}, method="POST")
    deadline = monotonic() + PATIENCE_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S):
                return
        except OSError:
            if monotonic() > deadline:
                raise
        sleep(0.1)
