"""A PostgreSQL server of the tests' own: on a Unix socket in a temporary folder, with fsync."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests import tools
from tests.bounds import BOUND_S

_AS_ITS_USER = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups") if os.geteuid() == 0 else ()
"""PostgreSQL refuses to run as root. Not by `user=` of subprocess, which then forks: beside threads of gRPC, whose
handlers run in the child, that has crashed before it was PostgreSQL."""


class PostgresServer:
    """One server, which can be stopped, killed and started again."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        self.dsn = f"postgresql://postgres@/postgres?host={folder}"
        self._programs = programs
        self._process: subprocess.Popen[bytes] | None = None

    def create(self) -> None:
        # --no-sync: of the creation alone; the server flushes what it commits.
        options = ["--no-sync", "-A", "trust", "-U", "postgres", "-D", f"{self.folder}/data"]
        done = subprocess.run(
            [*_AS_ITS_USER, self._programs / "initdb", *options], capture_output=True, text=True, timeout=BOUND_S
        )
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start, and wait until it answers."""
        settings = [f"unix_socket_directories={self.folder}", "listen_addresses=", "shared_buffers=16MB", "fsync=on"]
        options = [word for setting in settings for word in ("-c", setting)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_AS_ITS_USER, self._programs / "postgres", "-D", self.folder / "data", *options],
                stderr=log,
                stdout=log,
            )
        deadline = time.monotonic() + BOUND_S
        while True:
            try:
                psycopg.connect(self.dsn).close()
                return
            except psycopg.OperationalError:
                has_ended = self._process.poll() is not None
                if has_ended or time.monotonic() > deadline:
                    raise AssertionError((self.folder / "log").read_text()) from None
            time.sleep(0.01)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it; SIGINT is its fast shutdown, SIGQUIT its crash: the next start recovers from the log."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(BOUND_S)

    @property
    def pids(self) -> list[int]:
        """Its process, and those of its connections and of its own work."""
        assert self._process is not None
        pid = self._process.pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def installed() -> Path | None:
    """The path of `initdb`, beside the other programs; not of a link to it, in a folder closed to the server's user."""
    if path := shutil.which("initdb"):
        return Path(path).resolve()
    paths = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return paths[-1] if paths else None


@contextmanager
def server() -> Iterator[PostgresServer]:
    """A new server, running."""
    initdb = installed()
    if initdb is None:
        tools.absent("PostgreSQL is not installed (Debian's package postgresql)")
    # Not in pytest's folder, which only its own user may enter.
    with tempfile.TemporaryDirectory(prefix="onelane-pg-", ignore_cleanup_errors=True) as name:
        if os.geteuid() == 0:
            shutil.chown(name, "postgres", "postgres")
        running = PostgresServer(Path(name), initdb.parent)
        running.create()
        running.start()
        try:
            yield running
        finally:
            running.stop(signal.SIGQUIT)
