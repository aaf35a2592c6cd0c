"""What is measured: cases under load, each row the median of runs that alternate with those it is compared with."""

import json
import os
import subprocess
import sys
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from onelane.core import keys
from onelane.core.turns import Turns

from tests.bench import overload, records
from tests.bench.idle import kib_per_connection
from tests.bench.interpreted import PURE_PYTHON, Sources
from tests.bench.load import Load, Run, Target, middle, run
from tests.bench.peers import CERTIFICATE, PRIVATE_KEY, built, peer
from tests.bench.shards import Shards, shards, telemetry
from tests.bench.starting import start
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.otlp_receiver import HttpReceiver
from tests.running_app import ROOT
from tests.servers import Files

SHAPES = ((4, 16), (64, 1), (1, 1))
"""Connections, and streams on each."""
RAW, PYGRPC, GRPCLIB, PROBE = "raw grpc.aio + uvloop", "pygrpc-native", "grpclib + uvloop", "probe: ngh2 + uvloop"
GO, GO_ONE, TONIC = "grpc-go", "grpc-go, GOMAXPROCS=1", "tonic, one thread"
NATIVE, PLAIN, GRPCIO = "onelane native", "onelane native, plain def", "onelane grpcio"
PURE = "onelane native, not compiled"
EARLIER = "onelane of commit 4135c3d, which was never compiled"
AWAY, TWO = ", forwarded", ", 2 shards"
STREAM, BIG, SECURE = ", a streamed message", ", 1 MiB up and down", ", TLS"
LANES, THREADS = "rooms: 2 lanes", "rooms: grpc.server, 10 threads and locks"
CLIENTS = {"grpc.aio": "client: grpc.aio", "dial": "client: onelane dial", "connect": "client: onelane connect"}
IDLE, KEY, TURN = "an idle connection", "reading a key", "a turn that nobody contends"
STARTS = {2: "from `onelane up` to ready, 2 shards", 32: "from `onelane up` to ready, 32 shards"}
RESIDENT, PROPORTIONAL = "an idle shard, all its memory", "an idle shard, with its part of what is shared"
PEAK, FLOODED = "overload: what it can do", f"overload: asked {overload.TIMES} times as often"
OFFLOAD, EXECUTOR, WAKING = "a job: offload", "a job: run_in_executor, 1 worker", "a job: two bare threads, 2 pipes"
ONE, THOUSAND, ONE_CORE = "1 at once", "1000 at once", "1 at once, 1 core"
TRACED = {"tracing off": 0.0, "1 % traced": 0.01, "all traced": 1.0}
SDK = "grpc.aio + OpenTelemetry's SDK"
QUIET_S = 1.3
"""Longer than exports wait for each other."""
MESSAGES = 1000
"""Answers to one call of the streaming rows."""
MANY = (1, 2, 4, 8)
"""Numbers of shards whose calls must cost the same."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; None where a figure does not apply."""

    name: str
    shape: str
    cpu_us_per_call: float | None = None
    calls_per_s: int | None = None
    p99_ms: float | None = None
    kib: float | None = None
    count: float | None = None
    """Of what the name says."""
    cpu_us_runs: tuple[float, ...] = ()
    """Of each run, in the order of those that it alternated with."""


@dataclass(frozen=True, slots=True)
class Case:
    """A row before it is measured."""

    name: str
    targets: Sequence[Target]
    pids: Sequence[int]
    load: Load


@dataclass(frozen=True, slots=True)
class Setting:
    """How thorough a run is."""

    rounds: int
    """Runs of each row, after one that warms it."""
    scale: float
    """How many calls, beside the usual number."""
    tell: Callable[[str], None]


class Bench:
    """One section of the benchmark, whose servers run until its stack is left."""

    def __init__(self, setting: Setting, stack: ExitStack) -> None:
        self.setting = setting
        self.stack = stack
        self.folder = Path(stack.enter_context(TemporaryDirectory()))
        self.collector = stack.enter_context(HttpReceiver(keeps=False))
        self.otlp = self.collector.url
        self._waits_for_exports = False

    def wait_for_exports(self) -> None:
        """From now on a run ends when nothing has been exported any more for a while."""
        self._waits_for_exports = True

    def _settled(self) -> None:
        requests = -1
        while self._waits_for_exports and requests != self.collector.requests:
            requests = self.collector.requests
            time.sleep(QUIET_S)

    def peer(self, kind: str, scheme: str = "http", **environment: str) -> tuple[list[Target], list[int]]:
        address, pid = self.stack.enter_context(peer(kind, **environment))
        return [Target(address, "k", scheme)], [pid]

    def built(self, kinds: dict[str, tuple[str, dict[str, str]]]) -> dict[str, tuple[list[Target], list[int]]]:
        """Those peers whose programs can be built here, by name. kinds: what each is built from, and its variables."""
        programs = {name: built(kind) for name, (kind, _) in kinds.items()}
        for name in (name for name, program in programs.items() if program is None):
            self.setting.tell(f"{name} is LEFT OUT, with its goals: it cannot be built here, see above")
        return {name: self.peer(program, **kinds[name][1]) for name, program in programs.items() if program}

    def shards(
        self,
        count: int,
        listener: str = "native",
        service: str = "tests.echo.service:Echo",
        ratio: float = 0.01,
        tls: Files | None = None,
        sources: Sources | None = None,
    ) -> Shards:
        return self.stack.enter_context(shards(self.folder, count, listener, self.otlp, service, ratio, tls, sources))

    def interpreted(self) -> dict[str, Shards]:
        """A shard of this onelane, interpreted, and one of an earlier onelane, by name; those that can be had here."""
        if (python := os.environ.get(PURE_PYTHON)) is None:
            self.setting.tell(f"{PURE}, {EARLIER} are LEFT OUT, with their goals: {PURE_PYTHON} is not set")
            return {}
        sources = {PURE: Sources(python)}
        if (earlier := built("earlier")) is None:
            self.setting.tell(f"{EARLIER} is LEFT OUT, with its goals: its sources cannot be had here, see above")
        else:
            sources[EARLIER] = Sources(python, Path(earlier))
        return {name: self.shards(1, sources=those) for name, those in sources.items()}

    def load(self, calls: int, shape: tuple[int, int] = SHAPES[0], **more: Any) -> Load:
        # One call after the other takes longer and costs more.
        calls = max(64, int(calls * self.setting.scale / (3 if shape == (1, 1) else 1)))
        return Load(calls, *shape, **more)

    def rows(self, title: str, cases: Sequence[Case]) -> Iterator[Row]:
        """Measure these cases, alternating; the first round warms them."""
        runs: list[list[Run]] = [[] for _ in cases]
        for number in range(self.setting.rounds + 1):
            self.setting.tell(f"{title}: round {number} of {self.setting.rounds}")
            for case, measured in zip(cases, runs, strict=True):
                measured.append(run(case.targets, case.pids, case.load, self._settled))
        for case, measured in zip(cases, runs, strict=True):
            yield _row(case.name, case.load.shape, measured[1:])


def _row(name: str, shape: str, runs: Sequence[Run]) -> Row:
    usual = middle(runs)
    figures = (round(usual.cpu_us, 2), round(usual.per_s), round(usual.p99_ms, 2))
    return Row(name, shape, *figures, cpu_us_runs=tuple(run.cpu_us for run in runs))


def measure(setting: Setting) -> Iterator[Row]:
    """Every row."""
    for section in (_echo, _secure, _traced, _many_shards, _diamond, _overload, _blocking, _starting, _alone):
        with ExitStack() as stack:
            yield from section(Bench(setting, stack))


def _echo(bench: Bench) -> Iterator[Row]:
    """The same handler on every server: small unary calls in three shapes, then what only some of them are asked."""
    raw, pygrpc, grpclib, probe = (bench.peer(kind) for kind in ("raw", "pygrpc-native", "grpclib", "probe"))
    one_shard, two_shards, stock, stock_two = (bench.shards(n, kind) for kind in ("native", "grpcio") for n in (1, 2))
    native = (one_shard.at_home(), one_shard.pids)
    others = bench.built({GO: ("grpc-go", {}), GO_ONE: ("grpc-go", {"GOMAXPROCS": "1"}), TONIC: ("tonic", {})})
    interpreted = bench.interpreted()
    for shape in SHAPES:
        slow, fast = bench.load(2_000, shape), bench.load(8_000, shape)
        cases = [
            *(Case(name, *server, fast) for name, server in others.items()),
            Case(RAW, *raw, slow),
            Case(PYGRPC, *pygrpc, fast),
            Case(GRPCLIB, *grpclib, slow),
            Case(PROBE, *probe, fast),
            Case(NATIVE, *native, fast),
            Case(PLAIN, *native, bench.load(8_000, shape, method="Plain")),
            Case(NATIVE + AWAY, two_shards.away(), two_shards.pids, fast),
            Case(GRPCIO, stock.at_home(), stock.pids, slow),
        ]
        cases += [Case(name, app.at_home(), app.pids, fast) for name, app in interpreted.items()]
        if shape == SHAPES[0]:
            cases += [
                Case(GRPCIO + AWAY, stock_two.away(), stock_two.pids, slow),
                Case(GRPCIO + TWO, stock_two.at_home(), stock_two.pids, bench.load(1_000)),
            ]
        yield from bench.rows(f"small calls, {shape[0]}x{shape[1]}", cases)
    many = bench.load(24, (4, 2), method="Download", times=MESSAGES)
    large = bench.load(96, (4, 2), text_bytes=1024 * 1024)
    servers = {RAW: raw, PYGRPC: pygrpc, NATIVE: native}
    yield from bench.rows("streams", [Case(name + STREAM, *server, many) for name, server in servers.items()])
    yield from bench.rows("1 MiB", [Case(name + BIG, *server, large) for name, server in servers.items()])
    yield from _clients(bench, one_shard.at_home()[0])


def _secure(bench: Bench) -> Iterator[Row]:
    """The same calls over TLS."""
    files = Files(bench.folder)
    names = {CERTIFICATE: files.path("server.pem"), PRIVATE_KEY: files.path("server.key")}
    shard = bench.shards(1, tls=files)
    cases = [
        Case(RAW + SECURE, *bench.peer("raw", "https", **names), bench.load(2_000)),
        Case(NATIVE + SECURE, shard.at_home("https"), shard.pids, bench.load(8_000)),
    ]
    yield from bench.rows("TLS", cases)


def _traced(bench: Bench) -> Iterator[Row]:
    """The same calls with tracing off, of 1 % and of all, by us and by OpenTelemetry's SDK; what is exported counts."""
    bench.wait_for_exports()
    cases = []
    for name, ratio in TRACED.items():
        onelane_app = bench.shards(1, ratio=ratio)
        cases.append(Case(f"{NATIVE}, {name}", onelane_app.at_home(), onelane_app.pids, bench.load(16_000)))
        sdk_app = bench.peer("opentelemetry", **telemetry(bench.otlp, ratio))
        cases.append(Case(f"{SDK}, {name}", *sdk_app, bench.load(4_000)))
    cases.append(Case(f"{RAW}, beside", *bench.peer("raw"), bench.load(4_000)))
    yield from bench.rows("tracing", cases)


def _clients(bench: Bench, target: Target) -> Iterator[Row]:
    """Python's channels, whose own cost counts; all against the same shard."""
    runs: dict[str, list[Run]] = {kind: [] for kind in CLIENTS}
    for number in range(bench.setting.rounds):
        bench.setting.tell(f"clients: round {number + 1} of {bench.setting.rounds}")
        for kind, measured in runs.items():
            calls = str(int((3_000 if kind == "grpc.aio" else 8_000) * bench.setting.scale))
            measured.append(_program("tests.bench.client", kind, target.address, target.key, calls))
    for kind, measured in runs.items():
        yield _row(CLIENTS[kind], "1x64", measured)


def _many_shards(bench: Bench) -> Iterator[Row]:
    """The same calls over more and more shards, each asked by a client of its own; and over as many probes.

    More processes than cores cost each other time and caches; the probes show how much of it is that.
    """
    apps = [bench.shards(count) for count in MANY]
    probes = [bench.peer("probe") for _ in range(MANY[-1])]
    cases = []
    for count, app in zip(MANY, apps, strict=True):
        load = bench.load(16_000 // count)
        targets = [target for (target,), _ in probes[:count]]
        cases.append(Case(f"{NATIVE}, {count} of {MANY[-1]}", app.at_home(), app.pids, load))
        cases.append(Case(f"{PROBE}, {count} of {MANY[-1]}", targets, [pid for _, (pid,) in probes[:count]], load))
    yield from bench.rows("1 to 8 shards", cases)


def _diamond(bench: Bench) -> Iterator[Row]:
    """The article's diamond beside lanes: the same rooms, two of them asked at once."""
    lanes = bench.shards(2, service="tests.bench.rooms:Rooms")
    (threads,), pids = bench.peer("threads")
    rooms = lanes.at_home()
    slow, fast = (bench.load(calls, (2, 16), method="Plain") for calls in (2_000, 8_000))
    cases = [
        Case(THREADS, [Target(threads.address, room.key) for room in rooms], pids, slow),
        Case(LANES, rooms, lanes.pids, fast),
    ]
    yield from bench.rows("diamond", cases)


def _overload(bench: Bench) -> Iterator[Row]:
    """One shard whose handler takes a known time, asked for what it can do, and for several times as much."""
    shard = bench.shards(1)
    (target,) = shard.at_home()
    able = 1 / overload.BLOCK_S
    overload.run(target.address, able)
    before = overload.rss_kib(shard.pids)
    for name, times in ((PEAK, 1), (FLOODED, overload.TIMES)):
        runs = []
        for number in range(bench.setting.rounds // 2 + 1):
            bench.setting.tell(f"{name}: round {number + 1} of {bench.setting.rounds // 2 + 1}")
            runs.append(overload.run(target.address, able * times))
        grown = overload.rss_kib(shard.pids) - before
        answered = round(median(run.answered_per_s for run in runs))
        yield Row(name, f"x{times}", calls_per_s=answered, p99_ms=round(median(r.p99_ms for r in runs), 1), kib=grown)


def _blocking(bench: Bench) -> Iterator[Row]:
    """An empty job on another thread, and back; and what the machine asks for two wake-ups, which is in it."""
    asked = {(kind, shape): "1" for kind in (OFFLOAD, EXECUTOR, WAKING) for shape in (ONE, ONE_CORE)}
    asked |= {(kind, THOUSAND): "1000" for kind in (OFFLOAD, EXECUTOR)}
    kinds = {OFFLOAD: "offload", EXECUTOR: "executor", WAKING: "threads"}
    runs: dict[tuple[str, str], list[Run]] = {case: [] for case in asked}
    for number in range(bench.setting.rounds):
        bench.setting.tell(f"jobs: round {number + 1} of {bench.setting.rounds}")
        for (kind, shape), at_once in asked.items():
            jobs = str(int((40_000 if shape == THOUSAND else 5_000) * bench.setting.scale))
            cores = "1" if shape == ONE_CORE else "2"
            runs[kind, shape].append(_program("tests.bench.blocking", kinds[kind], at_once, jobs, cores))
    for (kind, shape), measured in runs.items():
        yield _row(kind, shape, measured)


def _program(*arguments: str) -> Run:
    """A module of ours that measures itself."""
    program = [sys.executable, "-m", *arguments]
    out = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout
    return Run(**json.loads(out))


def _starting(bench: Bench) -> Iterator[Row]:
    """Apps of few and of many shards, each started anew in every round."""
    for number_of_shards, name in STARTS.items():
        rounds = bench.setting.rounds if number_of_shards == min(STARTS) else 3
        starts = []
        for number in range(rounds):
            bench.setting.tell(f"{name}: round {number + 1} of {rounds}")
            starts.append(start(bench.folder, number_of_shards))
        yield Row(name, "seconds", count=round(median(app.ready_s for app in starts), 2))
        if number_of_shards == min(STARTS):
            yield Row(RESIDENT, "idle", kib=round(median(app.resident_kib for app in starts)))
            yield Row(PROPORTIONAL, "idle", kib=round(median(app.proportional_kib for app in starts)))


def _alone(bench: Bench) -> Iterator[Row]:
    """What is measured without load."""
    bench.setting.tell("idle connections, keys")
    yield Row(IDLE, "idle", kib=round(kib_per_connection(bench.shards(1)), 1))
    yield Row(KEY, "in process", cpu_us_per_call=round(key_us(), 3))
    yield Row(TURN, "in process", cpu_us_per_call=round(turn_us(), 3))
    for name, cost in records.costs_us().items():
        yield Row(name, "in process", cpu_us_per_call=round(cost, 3))


def key_us() -> float:
    """Microseconds to read a key from a small message whose class is loaded, its parsing included."""
    data = EchoRequest(key="room-17", text="x" * 32).SerializeToString()
    rule = keys.field_key(EchoRequest.DESCRIPTOR, keys.annotated_paths(EchoRequest.DESCRIPTOR))
    return min(timeit.repeat(lambda: rule.read(EchoRequest.FromString(data)), number=20_000, repeat=7)) / 20_000 * 1e6


def turn_us() -> float:
    """Microseconds to take a turn and leave it, where nobody else wants it."""
    turns = Turns("a-0", draw=lambda: 1, per_key=9, in_all=9)

    def once() -> None:
        turn = turns.enter("room-17", "p.S/M", "", None)
        assert turn is not None
        turns.leave(turn)

    return min(timeit.repeat(once, number=20_000, repeat=7)) / 20_000 * 1e6
