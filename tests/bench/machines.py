"""The rows of many machines: what a call costs in a cluster, how long placements take to change, what etcd is asked,
what stock clients of xDS have forwarded. The machines are on this one, so the network between them costs nothing."""

import asyncio
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import grpc.aio
import pytest

from tests import etcd
from tests.bench.cluster import APP, BenchMachines, bench_machines
from tests.bench.entries import Step, coordinator_of, is_committed, steps_of
from tests.bench.load import cpu_s
from tests.bench.rows import SHAPES, Bench, Case, Row, Setting
from tests.bench.shards import Shards
from tests.bench.stock_clients import forwarded
from tests.cluster.xds.stock_clients import COMMANDS
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.echo.v1.echo_pb2_grpc import EchoStub
from tests.running_app import http_request

NAMES = ("a", "b", "c")
LANES = 4
"""Of each machine."""
ALONE, CLUSTERED = "2 shards on one machine", "2 machines of a shard each"
APART = "2 machines of a shard each, without a cluster"
"""Two processes that come from one share pages and caches: two machines on this one have not that, with a cluster or
without."""
PINNED, LEFT, JOINED = (
    f"placement of {len(NAMES)} machines of {LANES} lanes: {what}"
    for what in ("a key is pinned", "a shard leaves", "a shard joins, once it is ready")
)
SUCCEEDED = "the coordinator is killed, until another one writes"
STANDING, CALLED = (
    f"requests to etcd a second, of a machine {what}" for what in ("that is idle", "whose keys are new")
)
WINDOW_S = 12.0
"""In which requests are counted: of several renewals of each lease."""
IN_CLUSTER, BY_ITSELF = "of a cluster", "by itself"
SUPERVISOR, WHOLE = (
    "an idle machine {}: its supervisor, CPU ms a second",
    "an idle machine {}: all of it, CPU ms a second",
)
READY = "from `onelane up` to ready, a machine {}"
FIRST, JOINS = "of a cluster, the first", "of a cluster, which joins"
STANDING_FORWARDS, FORWARDS_AFTER = (
    "{}, by xDS: forwards of 1000 calls",
    "{}, by xDS: seconds of forwards after a change",
)
CALLS_AT_ONCE = 32


def measure(setting: Setting) -> Iterator[Row]:
    """Every row."""
    try:
        etcd.program()
    except pytest.skip.Exception as skipped:
        setting.tell(f"the rows of machines are LEFT OUT, with their goals: {skipped}")
        return
    for section in (_calls, _cluster):
        with ExitStack() as stack:
            yield from section(Bench(setting, stack))


def _calls(bench: Bench) -> Iterator[Row]:
    """Calls that the ring sends home, beside the same on one machine: two shards either way, all processes count."""
    alone, apart = bench.shards(2), [bench.shards(1) for _ in range(2)]
    machines = bench.stack.enter_context(bench_machines(bench.folder, bench.otlp))
    for name in NAMES[:2]:
        machines.start(name, 1)
    machines.epoch()
    apps = {
        ALONE: (alone.at_home(), alone.pids),
        APART: ([*apart[0].at_home(), *apart[1].at_home()], [*apart[0].pids, *apart[1].pids]),
        CLUSTERED: (machines.at_home(), machines.pids),
    }
    for shape in SHAPES:
        load = bench.load(16_000, shape)
        yield from bench.rows(f"machines, {load.shape}", [Case(name, *app, load) for name, app in apps.items()])


def _cluster(bench: Bench) -> Iterator[Row]:
    """One cluster for all that is no call's cost."""
    machines = bench.stack.enter_context(bench_machines(bench.folder, bench.otlp))
    bench.setting.tell("three machines start")
    starts: dict[str, list[float]] = {READY.format(BY_ITSELF): [], READY.format(FIRST): [], READY.format(JOINS): []}
    began = time.perf_counter()
    alone = bench.shards(LANES)
    starts[READY.format(BY_ITSELF)].append(time.perf_counter() - began)
    for name in NAMES:
        starts[READY.format(FIRST if name == NAMES[0] else JOINS)].append(machines.start(name, LANES))
    machines.epoch()
    # First: calls leave counts of their keys, which would move.
    yield from _changes(bench, machines)
    yield from _standing(bench, machines, alone)
    yield from _stock_clients(bench, machines)
    succeeded = []
    for number in range(_few(bench)):
        bench.setting.tell(f"{SUCCEEDED}: round {number + 1} of {_few(bench)}")
        succeeded.append(_succession_s(machines))
        (name,) = set(NAMES) - machines.apps.keys()
        starts[READY.format(JOINS)].append(machines.start(name, LANES))
        machines.epoch()
    # The longest, as the goal is a bound.
    yield Row(SUCCEEDED, "seconds", count=round(max(succeeded), 2))
    for name, seconds in starts.items():
        yield Row(name, f"{LANES} shards, s", count=round(median(seconds), 2))


def _few(bench: Bench) -> int:
    """Rounds of what takes a lease."""
    return min(3, bench.setting.rounds)


def _standing(bench: Bench, machines: BenchMachines, alone: Shards) -> Iterator[Row]:
    """What machines ask and cost while nothing changes, idle and called."""
    clustered = machines.apps[NAMES[0]].process.pid
    supervisors = {IN_CLUSTER: clustered, BY_ITSELF: alone.cluster.process.pid}
    whole = {IN_CLUSTER: machines.pids_of(NAMES[0]), BY_ITSELF: alone.pids}
    processes = {SUPERVISOR.format(of): [pid] for of, pid in supervisors.items()}
    processes |= {WHOLE.format(of): pids for of, pids in whole.items()}
    bench.setting.tell(f"idle machines, for {WINDOW_S:g} s")
    before = {name: cpu_s(pids) for name, pids in processes.items()}
    yield Row(STANDING, "idle", count=_requests_per_s(machines, lambda: time.sleep(WINDOW_S)))
    for name, pids in processes.items():
        used_ms = (cpu_s(pids) - before[name]) * 1000 / WINDOW_S
        yield Row(name, "idle", count=round(used_ms, 1), kib=sum(map(_proportional_kib, pids)))
    bench.setting.tell(f"the same machines, called for {WINDOW_S:g} s")
    calls: list[int] = []
    asked = _requests_per_s(machines, lambda: calls.append(asyncio.run(_call_new_keys(machines))))
    yield Row(CALLED, f"1x{CALLS_AT_ONCE}", calls_per_s=round(calls[0] / WINDOW_S), count=asked)


def _requests_per_s(machines: BenchMachines, meanwhile: Callable[[], object]) -> float:
    """Of each machine, as etcd counts them."""
    before, began = machines.requests(), time.perf_counter()
    meanwhile()
    return round((machines.requests() - before) / (time.perf_counter() - began) / len(machines.apps), 2)


async def _call_new_keys(machines: BenchMachines) -> int:
    """Calls by a stock client that knows no ring, each of a key that was never called before. How many."""
    until, numbers = time.perf_counter() + WINDOW_S, iter(range(10**9))

    async def call(stub: Any) -> int:
        calls = 0
        while time.perf_counter() < until:
            await stub.Unary(EchoRequest(key=f"new-{next(numbers)}"), timeout=30)
            calls += 1
        return calls

    async with grpc.aio.insecure_channel(machines.apps[NAMES[0]].listen[APP]) as channel:
        stub: Any = EchoStub(channel)
        return sum(await asyncio.gather(*(call(stub) for _ in range(CALLS_AT_ONCE))))


def _proportional_kib(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    assert match is not None
    return int(match[1])


def _changes(bench: Bench, machines: BenchMachines) -> Iterator[Row]:
    """Without state. Each is asked of another machine than the one that coordinates."""
    seconds: dict[str, list[float]] = {PINNED: [], LEFT: [], JOINED: []}
    for number in range(bench.setting.rounds):
        bench.setting.tell(f"changes: round {number + 1} of {bench.setting.rounds}")
        for command in ("pin?shard=b/echo-0&key=7", "unpin?key=7"):
            seconds[PINNED].append(_change(machines, command)[-1].at_s)
        seconds[LEFT].append(_change(machines, f"scale?app={APP}&shards={LANES - 1}")[-1].at_s)
        steps = _change(machines, f"scale?app={APP}&shards={LANES}")
        ready = next(step for step in steps if step.placed(NAMES[-1]) == LANES)
        seconds[JOINED].append(steps[-1].at_s - ready.at_s)
    for name, measured in seconds.items():
        yield Row(name, "ms", count=round(1000 * median(measured)))


def _change(machines: BenchMachines, command: str) -> Sequence[Step]:
    """What is written from a command on until placement has changed."""
    ordered = partial(_order, machines, command)
    steps = asyncio.run(steps_of(machines.settings_of(NAMES[0]), ordered, is_committed))
    machines.epoch()
    return steps


def _order(machines: BenchMachines, command: str) -> None:
    admin = machines.apps[NAMES[-1]].admin
    status, body = http_request(f"http://{admin}/{command}", method="POST", X_Onelane="1")
    if status != 200:
        raise RuntimeError(f"{command}: {status} {body}")


def _stock_clients(bench: Bench, machines: BenchMachines) -> Iterator[Row]:
    scaled = [partial(_order, machines, f"scale?app={APP}&shards={shards}") for shards in (LANES - 1, LANES)]
    for client in COMMANDS:
        bench.setting.tell(f"stock clients by xDS: {client}")
        try:
            COMMANDS[client]()
        except pytest.skip.Exception as skipped:
            bench.setting.tell(f"{client} is LEFT OUT, with its goals: {skipped}")
            continue
        seen = asyncio.run(forwarded(client, machines, bench.folder, scaled))
        yield Row(STANDING_FORWARDS.format(client), "standing", count=seen.standing)
        yield Row(FORWARDS_AFTER.format(client), "2 changes", count=round(seen.after_s, 2))


def _succession_s(machines: BenchMachines) -> float:
    """Seconds from the end of the coordinator's machine until another one has written."""
    dead = asyncio.run(coordinator_of(machines.settings_of(NAMES[0])))
    steps = asyncio.run(
        steps_of(
            machines.settings_of(NAMES[0]),
            partial(machines.kill, dead),
            lambda step, first: step.entry != first.entry,
        )
    )
    return steps[-1].at_s
