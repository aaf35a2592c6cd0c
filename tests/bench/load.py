"""Load from h2load, so that the client's cost stays out, and what it cost the servers."""

import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.echo.v1.echo_pb2 import EchoRequest

TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Target:
    """One address and the key that its calls carry."""

    address: str
    key: str
    scheme: str = "http"
    url: str = ""
    """Of the POST over HTTP/1.1 that stands for the call, of a server without gRPC."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent to each target."""

    calls: int
    connections: int = 4
    streams: int = 16
    """On each connection at once."""
    method: str = "Unary"
    text_bytes: int = 32
    times: int = 0
    """Answers to one call, for a streaming method."""

    @property
    def shape(self) -> str:
        return f"{self.connections}x{self.streams}"


@dataclass(frozen=True, slots=True)
class Run:
    """One measured run. A unit is a call, or an answer where there are many to a call."""

    cpu_us: float
    """Of all processes that serve, for one unit."""
    per_s: float
    p99_ms: float
    """Of whole calls."""


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds that these processes have used, in user and in system mode.

    The clock of another process is (~pid << 3) | 2: clock_getcpuclockid(3). It counts nanoseconds, /proc/…/stat 10 ms.
    """
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def run(targets: Sequence[Target], pids: Sequence[int], load: Load, settled: Callable[[], None] = lambda: None) -> Run:
    """Send the load to all targets at once; every call must be answered OK.

    settled: waits until the servers have done what they do later, such as exporting.
    """
    with tempfile.TemporaryDirectory() as folder:
        bodies = [body_of(target, load, Path(folder) / f"{n}.body") for n, target in enumerate(targets)]
        before, began = cpu_s(pids), time.perf_counter()
        loads = [start(target, body, load) for target, body in zip(targets, bodies, strict=True)]
        outputs = [load.communicate(timeout=TIMEOUT_S)[0] for load in loads]
        spent = time.perf_counter() - began
        settled()
        used = cpu_s(pids) - before
        for output in outputs:
            if f" {load.calls} succeeded" not in output:
                raise RuntimeError(f"h2load: not all calls succeeded:\n{output}")
        logs = [body.with_suffix(".log").read_text() for body in bodies]
    times = sorted(int(line.split("\t")[2]) for log in logs for line in log.splitlines())
    units = load.calls * len(targets) * max(1, load.times)
    return Run(used / units * 1e6, units / spent, times[int(0.99 * len(times))] / 1000)


def body_of(target: Target, load: Load, path: Path) -> Path:
    """A file with the request as it goes on the wire."""
    message = EchoRequest(key=target.key, text="x" * load.text_bytes, times=load.times).SerializeToString()
    path.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
    return path


def start(target: Target, body: Path, load: Load) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [
            *("h2load", "-n", str(load.calls), "-t", "1", f"--log-file={body.with_suffix('.log')}"),
            *(_http_1(target, load) if target.url else _grpc(target, body, load)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _grpc(target: Target, body: Path, load: Load) -> list[str]:
    return [
        *("-c", str(load.connections), "-m", str(load.streams), "-d", str(body)),
        *("-H", "te: trailers", "-H", "content-type: application/grpc", "-H", "grpc-timeout: 30S"),
        f"{target.scheme}://{target.address}/echo.v1.Echo/{load.method}",
    ]


def _http_1(target: Target, load: Load) -> list[str]:
    """As many requests at once, each on a connection of its own."""
    return ["--h1", "-c", str(load.connections * load.streams), "-m", "1", "-H", ":method: POST", target.url]


def middle(runs: Sequence[Run]) -> Run:
    """The median of each figure by itself."""
    return Run(
        statistics.median(r.cpu_us for r in runs),
        statistics.median(r.per_s for r in runs),
        statistics.median(r.p99_ms for r in runs),
    )
