"""Load from h2load, so that the client's cost stays out, and what it cost the servers."""

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Target:
    """One address and the key that its calls carry."""

    address: str
    key: str


@dataclass(frozen=True, slots=True)
class Run:
    """One measured run."""

    cpu_us_per_call: float
    calls_per_s: float
    p99_ms: float


def cpu_s(pids: Sequence[int]) -> float:
    """CPU seconds that these processes have used, in user and in system mode."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def run(targets: Sequence[Target], pids: Sequence[int], *, calls: int, connections: int, streams: int) -> Run:
    """Send `calls` unary calls to each target at once; every one must be answered OK."""
    with tempfile.TemporaryDirectory() as folder:
        before, began = cpu_s(pids), time.perf_counter()
        loads = [
            _h2load(target, Path(folder) / str(n), calls=calls, connections=connections, streams=streams)
            for n, target in enumerate(targets)
        ]
        outputs = [load.communicate(timeout=120)[0] for load in loads]
        spent, used = time.perf_counter() - began, cpu_s(pids) - before
        for output in outputs:
            if f"{calls} succeeded" not in output:
                raise RuntimeError(f"h2load: not all calls succeeded:\n{output}")
        times = sorted(
            int(line.split("\t")[2]) for log in Path(folder).glob("*.log") for line in log.read_text().splitlines()
        )
    total = calls * len(targets)
    return Run(used / total * 1e6, total / spent, times[int(0.99 * len(times))] / 1000)


def _h2load(target: Target, base: Path, *, calls: int, connections: int, streams: int) -> "subprocess.Popen[str]":
    from tests.echo.v1.echo_pb2 import EchoRequest

    message = EchoRequest(key=target.key, text="x" * 32).SerializeToString()
    body = base.with_suffix(".body")
    body.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
    return subprocess.Popen(
        [
            *("h2load", "-n", str(calls), "-c", str(connections), "-m", str(streams), "-t", "1"),
            *("-d", str(body), "-H", "te: trailers", "-H", "content-type: application/grpc"),
            f"--log-file={base.with_suffix('.log')}",
            f"http://{target.address}/echo.v1.Echo/Unary",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def median(runs: Sequence[Run]) -> Run:
    """The median of each figure by itself."""
    return Run(
        statistics.median(r.cpu_us_per_call for r in runs),
        statistics.median(r.calls_per_s for r in runs),
        statistics.median(r.p99_ms for r in runs),
    )
