"""A PostgreSQL server of the tests' own, with fsync: on a Unix socket in a temporary folder, or also at the address of
a host of `tests/namespaces`."""

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
from tests.namespaces.network import ADDRESSES, Host

_AS_ITS_USER = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups") if os.geteuid() == 0 else ()
"""PostgreSQL refuses to run as root. Not by `user=` of subprocess, which then forks: beside threads of gRPC, whose
handlers run in the child, that has crashed before it was PostgreSQL."""


class PostgresServer:
    """One server, which can be stopped, killed and started again."""

    def __init__(self, folder: Path, programs: Path, host: Host | None = None) -> None:
        self.folder = folder
        self.dsn = f"postgresql://postgres@/postgres?host={folder}"
        """By its socket."""
        self.host = host
        self._programs = programs
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def network_dsn(self) -> str:
        """By the address of its host."""
        assert self.host is not None
        return f"postgresql://postgres@{self.host.address}/postgres"

    def create(self) -> None:
        # --no-sync: of the creation alone; the server flushes what it commits.
        options = ["--no-sync", "-A", "trust", "-U", "postgres", "-D", f"{self.folder}/data"]
        done = subprocess.run(
            [*_AS_ITS_USER, self._programs / "initdb", *options], capture_output=True, text=True, timeout=BOUND_S
        )
        assert done.returncode == 0, done.stderr
        with (self.folder / "data" / "pg_hba.conf").open("a") as file:
            file.write(f"host all all {ADDRESSES} trust\n")

    def start(self) -> None:
        """Start, and wait until it answers."""
        settings = [f"unix_socket_directories={self.folder}", "shared_buffers=16MB", "fsync=on"]
        settings.append(f"listen_addresses={self.host.address if self.host else ''}")
        within = self.host.within if self.host else ()
        options = [word for setting in settings for word in ("-c", setting)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*within, *_AS_ITS_USER, self._programs / "postgres", "-D", self.folder / "data", *options],
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
def server(host: Host | None = None) -> Iterator[PostgresServer]:
    """A new server, running. host: it runs there, and is reached at its address as well."""
    initdb = installed()
    if initdb is None:
        tools.absent("PostgreSQL is not installed (Debian's package postgresql)")
    # Not in pytest's folder, which only its own user may enter.
    with tempfile.TemporaryDirectory(prefix="onelane-pg-", ignore_cleanup_errors=True) as name:
        if os.geteuid() == 0:
            shutil.chown(name, "postgres", "postgres")
        running = PostgresServer(Path(name), initdb.parent, host)
        running.create()
        running.start()
        try:
            yield running
        finally:
            running.stop(signal.SIGQUIT)
