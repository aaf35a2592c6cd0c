"""The rows of state: what it costs to move, and to stay. Each names what it promises: where a call is answered only
once it is on disk, that is a flush (fsync or fdatasync) of SQLite's log or of PostgreSQL's."""

import asyncio
import importlib.util
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import grpc

from tests import postgres
from tests.bench import durable_peers, http_peers, moving, once, peers
from tests.bench.load import Target, run
from tests.bench.rows import Bench, Case, Row, Setting
from tests.bench.shards import Shards
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.echo.v1.echo_pb2_grpc import EchoStub

BARE, MOVING = "counter: a bare dict", "counter: keyed, moves"
MEMORY = "counter: keyed, in memory"
SQLITE = "counter: durable, SQLite WAL synchronous=FULL"
ONCE = "counter: durable, SQLite, with an idempotency-key"
REPEATED = "counter: durable, SQLite, its repeat"
AIOSQLITE = "grpc.aio + aiosqlite, WAL synchronous=FULL, a commit per call"
ASYNCPG = "grpc.aio + asyncpg, fsync=on synchronous_commit=on, a commit per call"
FLUSHES = "counter: durable, SQLite: flushes to disk per call"
SCALED = "scaled 2 → 4 → 3 under load, in memory: "
FAILED, WRONG, PAUSE = SCALED + "failed calls", SCALED + "lost or doubled updates", SCALED + "a key's longest pause"
UNCHANGED = SCALED + "a key's longest call in as long a time without a change"
CLIENTS = f"{len(moving.KEYS)} at once"
MODERATE = f"{CLIENTS}, with pauses"
FILLED = "entries of 1 KiB that move, in memory: "
ENTRIES, SECONDS = FILLED + "how many", FILLED + "seconds"
BEFORE, BESIDE = FILLED + "calls of other keys before", FILLED + "calls of other keys beside"
AT_ONCE = {"64 in flight": (1, 8), "256 in flight": (4, 8)}
"""Connections, and streams on each, to each key."""
KEYS = 8
"""A client for each."""
SERVICE = "tests.bench.counters:"


def measure(setting: Setting) -> Iterator[Row]:
    """Every row."""
    setting.tell(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for section in (_moving, _durable, _scaled, _filled):
        with ExitStack() as stack:
            yield from section(Bench(setting, stack))


def _moving(bench: Bench) -> Iterator[Row]:
    """The same handler over a dict that moves, and over one that onelane does not know."""
    apps = {name: bench.shards(1, service=f"{SERVICE}{kind}") for name, kind in ((BARE, "Bare"), (MOVING, "Moving"))}
    load = bench.load(16_000, method="Plain")
    yield from bench.rows("moving", [Case(name, app.at_home(), app.pids, load) for name, app in apps.items()])


def _durable(bench: Bench) -> Iterator[Row]:
    """A call that is answered once it is on disk, beside one that is not, and beside others that do it."""
    memory, durable = (bench.shards(1, service=f"{SERVICE}{kind}") for kind in ("Moving", "Durable"))
    apps = {MEMORY: (_keys(memory), memory.pids), SQLITE: (_keys(durable), durable.pids)}
    others = _peers(bench)
    for name, shape in AT_ONCE.items():
        fast, slow = (bench.load(calls, shape, method="Plain") for calls in (4_000, 400))
        cases = [Case(app, *where, fast) for app, where in apps.items()]
        cases += [Case(peer, *where, slow) for peer, where in others.items()]
        yield from bench.rows(f"durable, {name}", cases)
    yield from _flushes(bench, durable)
    yield from _once(bench, durable)


def _keys(app: Shards) -> list[Target]:
    (member,) = app.members
    return [Target(member.address, f"key-{number}") for number in range(KEYS)]


def _peers(bench: Bench) -> dict[str, tuple[list[Target], list[int]]]:
    """Those that are installed. PostgreSQL's own processes count."""
    others = {}
    if _is_installed(bench, "aiosqlite"):
        others[AIOSQLITE] = _peer(bench, "aiosqlite", str(bench.folder / "count.db"))
    if _is_installed(bench, "asyncpg") and _has_postgres(bench):
        server = bench.stack.enter_context(postgres.server())
        targets, pids = _peer(bench, "asyncpg", server.dsn)
        others[ASYNCPG] = (targets, pids + server.pids)
    return others | _http_peers(bench)


def _http_peers(bench: Bench) -> dict[str, http_peers.Peer]:
    """Restate where its Python SDK is installed, too."""
    if (path := peers.built("npm")) is None:
        bench.setting.tell("left out: Restate and workerd, which Node installs")
        return {}
    modules, keys, enter = Path(path), [f"key-{number}" for number in range(KEYS)], bench.stack.enter_context
    others = {http_peers.WORKERD: enter(http_peers.workerd(modules, bench.folder / "workerd", keys))}
    if _is_installed(bench, "restate") and _is_installed(bench, "uvicorn"):
        others[http_peers.RESTATE] = enter(http_peers.restate(modules, bench.folder / "restate", keys))
    return others


def _peer(bench: Bench, kind: str, database: str) -> tuple[list[Target], list[int]]:
    (target,), pids = bench.peer(kind, **{durable_peers.DATABASE: database})
    return [Target(target.address, f"key-{number}") for number in range(KEYS)], pids


def _is_installed(bench: Bench, module: str) -> bool:
    if importlib.util.find_spec(module) is not None:
        return True
    bench.setting.tell(f"left out: {module} is not installed (the extra `bench`)")
    return False


def _has_postgres(bench: Bench) -> bool:
    if postgres.installed() is not None:
        return True
    bench.setting.tell("left out: PostgreSQL is not installed (Debian's package postgresql)")
    return False


def _once(bench: Bench, app: Shards) -> Iterator[Row]:
    """Calls with ids of their own, and each of them again. Sent by grpc.aio, whose cost is not counted."""
    (member,) = app.members
    calls = max(64, int(4_000 * bench.setting.scale))
    runs: dict[str, list[float]] = {ONCE: [], REPEATED: []}
    for number in range(bench.setting.rounds + 1):
        bench.setting.tell(f"exactly once: round {number} of {bench.setting.rounds}")
        for costs in runs.values():
            costs.append(asyncio.run(once.cost_us(member.address, app.pids, prefix=f"{number}-", calls=calls)))
    for name, (_, *costs) in runs.items():
        yield Row(name, once.SHAPE, cpu_us_per_call=round(median(costs), 2), cpu_us_runs=tuple(costs))


def _flushes(bench: Bench, app: Shards) -> Iterator[Row]:
    """Counted by strace, which slows the shard down; so no figure but this is taken from that run."""
    if shutil.which("strace") is None:
        bench.setting.tell("left out: strace is not installed, so flushes are not counted")
        return
    load = bench.load(4_000, AT_ONCE["64 in flight"], method="Plain")
    targets = _keys(app)
    with _traced(app.shard_pids[0], bench.folder / "flushes") as flushes:
        run(targets, app.pids, load)
    per_call = flushes.read_text().count("sync(") / (load.calls * len(targets))
    yield Row(FLUSHES, load.shape, count=round(per_call, 4))


@contextmanager
def _traced(pid: int, path: Path) -> Iterator[Path]:
    """The file with the flushes of a process, one a line."""
    command = ["strace", "-f", "-e", "trace=fsync,fdatasync", "-o", str(path), "-p", str(pid)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    attached = process.stderr.readline()
    if "attached" not in attached:
        raise RuntimeError(f"strace: {attached}")
    try:
        yield path
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)


def _scaled(bench: Bench) -> Iterator[Row]:
    """Shards come and go under load."""
    app = bench.shards(2, service=f"{SERVICE}Moving").cluster
    failed = wrong = 0
    counts: dict[str, int] = {}
    pauses: list[float] = []
    unchanged: list[float] = []
    for number in range(bench.setting.rounds):
        bench.setting.tell(f"scaled: round {number + 1} of {bench.setting.rounds}")
        counted = moving.count_during(app, [f"/scale?app=echo&shards={n}" for n in (4, 3, 2)], counts)
        failed, wrong = failed + counted.failed, wrong + counted.wrong
        for place, change in enumerate(moving.changes_of(app)[-3:]):
            pauses += counted.pauses_s(change.began, change.over)
            quiet = counted.calls[0][0] + 0.4 + 0.3 * place
            unchanged += counted.pauses_s(quiet, quiet + change.over - change.began)
    yield Row(FAILED, CLIENTS, count=failed)
    yield Row(WRONG, CLIENTS, count=wrong)
    for name, seconds in ((PAUSE, pauses), (UNCHANGED, unchanged)):
        yield Row(name, CLIENTS, p99_ms=round(1000 * sorted(seconds)[int(0.99 * len(seconds))], 1))


def _filled(bench: Bench) -> Iterator[Row]:
    """Half of one shard's memory moves to a new shard, beside the traffic of keys that stay."""
    for shape, every_s in ((CLIENTS, moving.ALL_OUT), (MODERATE, moving.MODERATE)):
        yield from _filled_beside(bench, shape, every_s)


def _filled_beside(bench: Bench, shape: str, every_s: Mapping[str, float]) -> Iterator[Row]:
    app = bench.shards(1, service=f"{SERVICE}Filled").cluster
    entries = int(200_000 * min(1.0, bench.setting.scale))
    with grpc.insecure_channel(app.listen["echo"]) as channel:
        EchoStub(channel).Misbehave(EchoRequest(key="k", times=entries), timeout=60)
    bench.setting.tell(f"many entries, {shape}")
    counted = moving.count_during(app, ["/scale?app=echo&shards=2"], {}, every_s)
    (change,) = moving.changes_of(app)
    first, scaled = counted.calls[0][0], Shards(app)
    staying = {key for key in moving.KEYS if scaled.placement.owner_of(key) == scaled.members[0]}
    moved = sum(scaled.placement.owner_of(f"entry-{n}") == scaled.members[1] for n in range(entries))
    yield Row(ENTRIES, shape, count=moved)
    yield Row(SECONDS, shape, count=round(change.over - change.began, 2))
    before = counted.per_s(staying, first, first + moving.BEFORE_S)
    yield Row(BEFORE, shape, calls_per_s=round(before))
    yield Row(BESIDE, shape, calls_per_s=round(counted.per_s(staying, change.began, change.over)))
