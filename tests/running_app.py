"""A real cluster for a test: `onelane up` in a process of its own, on free ports."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onelane.cli import admin_client
from onelane.core.placement import Member, Placement

from tests import warm_command
from tests.bounds import BOUND_S

ROOT = Path(__file__).parent.parent
ECHO = 'services = ["tests.echo.service:Echo"]'
ASKED_S, FIRST_LINES, LAST_LINES = 5.0, 40, 20
_running: list["RunningApp"] = []
"""All that run now, for what is told of a test that hangs."""


async def eventually(condition: Callable[[], Any]) -> None:
    """Wait until `condition()`, which may block, holds; the suite's timeout is the bound."""
    pause_s = 0.01
    while not await asyncio.to_thread(condition):
        await asyncio.sleep(pause_s)
        # What takes long is asked for less often: a condition that runs a command or reads a status has its price.
        pause_s = min(pause_s * 1.1, 0.05)


class Scrape:
    """The metrics of one moment. A supervisor answers ten scrapes a second, so ask one for all that a test compares."""

    def __init__(self, text: str) -> None:
        self.text = text

    def metric(self, name: str, **labels: str) -> float:
        """The sum over all series of `name` that have these labels."""
        total = 0.0
        for line in self.text.splitlines():
            series, _, value = line.rpartition(" ")
            wanted = all(f'{label}="{text}"' in series for label, text in labels.items())
            if series.partition("{")[0] == name and wanted:
                total += float(value)
        return total

    def in_flight(self, **labels: str) -> float:
        """Calls of the app's services that are being worked on."""
        return self.metric("onelane_calls_in_flight", **labels)


class RunningApp:
    """A running `onelane up`. `admin` is its admin address, `host:port` or `unix:/path`; `listen` has each app's shared
    port."""

    def __init__(self, process: subprocess.Popen[str] | warm_command.WarmCommand, log: Path) -> None:
        self.process = process
        self.log = log
        self.listen: dict[str, str] = {}
        self.admin = ""
        self._reports_late = 0.0
        """As the scrape before has told."""

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            # With --json.
            if match := re.match(r'\{"event": "ready", "admin": "(\S+)"', line):
                self.admin = match[1]
                return
            if match := re.match(r"onelane: (\S+) ready on (\S+)", line):
                self.listen[match[1]] = match[2]
            elif match := re.match(r"onelane: ready, admin on (?:http://)?(\S+)", line):
                self.admin = match[1]
                return
        raise AssertionError(f"not ready: {self.log.read_text()}")

    def get(self, path: str, *, timeout_s: float = BOUND_S) -> str:
        url = f"http://{_authority(self.admin)}{path}"
        with admin_client.opener(self.admin).open(url, timeout=timeout_s) as answer:
            text: str = answer.read().decode()
            return text

    def order(self, command: str) -> str:
        """Have its supervisor carry out a command of the admin address, such as `restart?app=echo`."""
        url = f"http://{_authority(self.admin)}/{command}"
        request = urllib.request.Request(url, method="POST", headers={"X-Onelane": "1"})
        with admin_client.opener(self.admin).open(request, timeout=BOUND_S) as answer:
            text: str = answer.read().decode()
            return text

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.get("/status"))
        return status

    def shards(self, app: str = "echo") -> list[dict[str, Any]]:
        shards: list[dict[str, Any]] = self.status()["apps"][app]["shards"]
        return shards

    def placement(self, app: str = "echo") -> Placement:
        """Of this machine's shards, with no socket and no life: which keys are whose depends on the ports of this
        run."""
        row = self.status()["apps"][app]
        return Placement(row["epoch"], tuple(Member(shard["name"], shard["address"], "") for shard in row["shards"]))

    def scrape(self) -> "Scrape":
        """Exact as of now. A report of a starved shard may come too late for a scrape, which tells so: then it is made
        again."""
        while True:
            scrape, known = Scrape(self.get("/metrics")), self._reports_late
            self._reports_late = scrape.metric("onelane_reports_late_total")
            if self._reports_late == known:
                return scrape

    def is_changing(self, app: str = "echo") -> bool:
        """Whether keys move, or a life that they have left finishes its calls."""
        row = self.status()["apps"][app]
        return row["change"] is not None or bool(row["leaving"])

    def metric(self, name: str, **labels: str) -> float:
        """The sum over all series of `name` that have these labels, in a scrape of its own."""
        return self.scrape().metric(name, **labels)

    def in_flight(self, **labels: str) -> float:
        """As a scrape of its own says."""
        return self.scrape().in_flight(**labels)

    def stop(self, *, by: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to drain; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(by)
        return self.process.wait(BOUND_S)


@contextmanager
def running(
    folder: Path,
    toml: str,
    *arguments: str,
    command: str = "up",
    python: str = "",
    module: str = "onelane",
    namespace: str = "",
    admin: str = "127.0.0.1:0",
    **environment: str,
) -> Iterator[RunningApp]:
    """`onelane up` over a file with `toml` in it; ended at the end, whatever happens. python: it runs in a
    fresh process of this one; by default in a fork of `warm_command`. module: what runs as `python -m` in place of
    onelane, in a fresh process too. namespace: the file of the network namespace that it runs in, as that of a host of
    `tests/namespaces`."""
    file = folder / "onelane.toml"
    file.write_text(f'admin = "{admin}"\n{toml}')
    environment = never_late(toml) | environment
    command_line = (command, str(file), "--app-dir", str(ROOT), *arguments)
    is_warm = not python and module == "onelane" and not any(n.startswith("PYTHON") for n in environment)
    fresh = None if is_warm else (python or sys.executable, "-m", module)
    log = folder / "log"
    with running_command(
        *command_line, cwd=folder, log=log, fresh=fresh, namespace=namespace, **environment
    ) as cluster:
        yield cluster


@contextmanager
def running_command(
    *arguments: str,
    cwd: Path,
    log: Path,
    fresh: Sequence[str] | None = (sys.executable, "-m", "onelane"),
    namespace: str = "",
    **environment: str,
) -> Iterator[RunningApp]:
    """`onelane` with these arguments, once it is ready; ended at the end. log: the file that takes its stderr. fresh:
    what it is in a fresh process; None for a fork of `warm_command`. namespace: see `running`."""
    process: subprocess.Popen[str] | warm_command.WarmCommand
    with log.open("w") as stderr:
        if fresh is not None:
            within = ("nsenter", f"--net={namespace}", "--") if namespace else ()
            process = subprocess.Popen(
                [*within, *fresh, *arguments],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=cwd,
                env=os.environ | environment,
            )
        else:
            process = warm_command.start(
                arguments, cwd=cwd, stderr=stderr, environment=os.environ | environment, namespace=namespace
            )
    cluster = RunningApp(process, log)
    _running.append(cluster)
    try:
        cluster.wait_ready()
        yield cluster
    finally:
        _running.remove(cluster)
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def running_apps() -> str:
    """How all apps are that run now: the status of each, and how its log begins and ends."""
    return "\n".join(map(_described, _running))


def _described(app: RunningApp) -> str:
    try:
        status = app.get("/status", timeout_s=ASKED_S)
    except OSError as error:
        status = f"no status: {error}"
    lines = app.log.read_text(errors="replace").splitlines()
    last = lines[FIRST_LINES:][-LAST_LINES:]
    return "\n".join([f"{app.log.parent.name}: {status}", *lines[:FIRST_LINES], *last])


def run_to_end(folder: Path, toml: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`onelane up` of a file that it cannot run, or that ends by itself."""
    file = folder / "onelane.toml"
    file.write_text(f'admin = "127.0.0.1:0"\n{toml}')
    return run_command("up", str(file), "--app-dir", str(ROOT), *arguments, cwd=folder, **environment)


def run_command(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """`onelane` with these arguments, to its end, in a fork of `warm_command`."""
    with tempfile.TemporaryFile("w+") as stderr:
        process = warm_command.start(arguments, cwd=cwd, stderr=stderr, environment=os.environ | environment)
        with process.stdout as stdout:
            output = stdout.read()
        code = process.wait(BOUND_S)
        stderr.seek(0)
        return subprocess.CompletedProcess(arguments, code, output, stderr.read())


def is_running(pid: int) -> bool:
    """Whether a process has not ended; a zombie has. Linux only."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(pid: int) -> set[int]:
    """The processes that a process has started, or has had started by `warm_command`, and those that they have. Linux
    only."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = {int(child) for thread in threads for child in (thread / "children").read_text().split()}
    except (FileNotFoundError, ProcessLookupError):
        return set()
    children |= warm_command.fork_servers(pid)
    return children.union(*map(descendants, children))


def http_request(url: str, *, method: str = "GET", **headers: str) -> tuple[int, str]:
    """Status and body of the response. headers: their names with underscores for hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, method=method, headers=named)
    try:
        with urllib.request.urlopen(request, timeout=BOUND_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def _authority(admin: str) -> str:
    return "localhost" if admin.startswith("unix:") else admin


NEVER_LATE = "max_late_s = 60"
"""On a busy machine a shard runs late, and refuses calls by default: that is what other tests are about."""


def never_late(toml: str) -> dict[str, str]:
    """Variables with that setting, for the apps of a file that say nothing of it."""
    apps = tomllib.loads(toml).get("apps", {})
    return {f"ONELANE_APPS__{name.upper()}__MAX_LATE_S": "60" for name in apps if "max_late_s" not in apps[name]}


def echo(shards: int = 2, *more: str) -> str:
    """The TOML of one app `echo` on a free port."""
    late = [] if any(line.startswith("max_late_s") for line in more) else [NEVER_LATE]
    return "\n".join(["[apps.echo]", ECHO, 'listen = "127.0.0.1:0"', f"shards = {shards}", *late, *more])
