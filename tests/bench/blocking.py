"""An empty job on another thread, and back: `python -m tests.bench.blocking KIND AT_ONCE JOBS CORES`.

Prints one JSON object with the fields of `tests.bench.load.Run`. KIND: offload; executor (`run_in_executor` with one
worker); threads (two of them that do nothing but write to each other, over pipes: what the machine asks for a wake-up).
CORES: how many of the machine's the process may use; on one, no core sleeps and none has to be woken.
"""

import asyncio
import json
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random
from time import perf_counter, process_time
from typing import Any

import uvloop
from onelane.core.clock import SystemClock
from onelane.shard.offload.offload import Offload
from onelane.telemetry.stats import Stats
from onelane.telemetry.tracer import Tracer

WARM = 2000
"""Jobs before those that are measured."""


def nothing(resource: None) -> None:
    """The job."""


async def jobs(run: Callable[[], Awaitable[Any]], at_once: int, count: int) -> list[float]:
    """Run `count` jobs, so many at once; the seconds that each has taken."""
    left = iter(range(count))
    seconds: list[float] = []

    async def one_after_the_other() -> None:
        for _ in left:
            began = perf_counter()
            await run()
            seconds.append(perf_counter() - began)

    await asyncio.gather(*(one_after_the_other() for _ in range(at_once)))
    return seconds


async def measure(run: Callable[[], Awaitable[Any]], at_once: int, count: int) -> None:
    """Warm, measure, print."""
    await jobs(run, at_once, WARM)
    began, used = perf_counter(), process_time()
    seconds = await jobs(run, at_once, count)
    tell(seconds, perf_counter() - began, process_time() - used)


def tell(seconds: list[float], spent: float, used: float) -> None:
    count = len(seconds)
    p99 = sorted(seconds)[int(0.99 * count)]
    print(json.dumps({"cpu_us": used / count * 1e6, "per_s": count / spent, "p99_ms": p99 * 1000}))  # noqa: T201


async def offload(at_once: int, count: int) -> None:
    tracer = Tracer(shard="bench-0", clock=SystemClock(), rng=Random(1))
    offload = Offload(lambda: None, name="bench", capacity=at_once, tracer=tracer, stats=Stats())
    await offload.wait_ready()
    await measure(lambda: offload.run(nothing), at_once, count)
    await offload.aclose()


async def executor(at_once: int, count: int) -> None:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as pool:
        await measure(lambda: loop.run_in_executor(pool, nothing, None), at_once, count)


def threads(count: int) -> None:
    (thread_end, to_thread), (lane_end, to_lane) = os.pipe(), os.pipe()

    def answer() -> None:
        while os.read(thread_end, 1) != b"x":
            os.write(to_lane, b".")

    thread = threading.Thread(target=answer)
    thread.start()
    seconds, started, used = [], perf_counter(), process_time()
    for _ in range(count):
        began = perf_counter()
        os.write(to_thread, b".")
        os.read(lane_end, 1)
        seconds.append(perf_counter() - began)
    tell(seconds, perf_counter() - started, process_time() - used)
    os.write(to_thread, b"x")
    thread.join()


def main(kind: str, at_once: int, count: int, cores: int) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    if kind == "threads":
        threads(count)
    else:
        uvloop.run({"offload": offload, "executor": executor}[kind](at_once, count))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
