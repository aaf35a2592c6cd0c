"""What every test may ask for."""

import asyncio
import compileall
import functools
import gc
import inspect
import itertools
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any

import grpc
import grpc.aio
import hypothesis
import pytest

from tests.bounds import BOUND_S
from tests.coroutine_stacks import awaiting
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import ROOT, RunningApp, echo, running, running_apps

# Where the variable CI is not set, an example that takes 200 ms would fail its test, however busy the machine is.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

OWN_SUBCHANNELS = ("grpc.use_local_subchannel_pool", 1)


def with_own_subchannels(open_channel: Callable[..., Any]) -> Callable[..., Any]:
    """The channels of a process share their subchannels by default, by address. Ports come back: a server of one test
    may have the port of a server that has gone, and its first calls would fail as those of its predecessor did."""
    signature = inspect.signature(open_channel)

    @functools.wraps(open_channel)
    def opened(*arguments: Any, **named: Any) -> Any:
        bound = signature.bind(*arguments, **named)
        bound.arguments["options"] = (OWN_SUBCHANNELS, *(bound.arguments.get("options") or ()))
        return open_channel(*bound.args, **bound.kwargs)

    return opened


for grpcio in (grpc, grpc.aio):
    for function in ("insecure_channel", "secure_channel"):
        setattr(grpcio, function, with_own_subchannels(getattr(grpcio, function)))

LONGEST = (
    "chaos/test_failures.py",
    "supervisor/test_cluster_placing_processes.py",
    "arena/test_machines.py",
    "cluster/test_arena.py",
    "shard/test_watchdog_stalled_shard.py",
    "kubernetes/test_stateful_set.py",
    "supervisor/test_xds_server_stock_clients.py",
    "supervisor/test_cluster_placing_hostile.py",
    "supervisor/admin/test_page_machines.py",
    "house/test_readme.py",
    "supervisor/test_leased_lives_processes.py",
    "docs/test_tutorial.py",
    "supervisor/test_changes_processes.py",
    "docs/test_site.py",
    "supervisor/admin/test_page_durable.py",
    "shard/test_durable_state_moved.py",
    "chaos/test_chaos.py",
    "kubernetes/test_stateful_set_in_cluster.py",
    "interop/test_peers.py",
    "interop/test_jaeger_machines.py",
    "supervisor/test_joining_cut_off.py",
    "supervisor/test_machine_clocks.py",
    "shard/test_lifecycle_cut_off_counted.py",
)
"""Files of few tests that take long. A parallel run begins with them: the last one to begin would run alone. Those that
mostly wait stand apart, so that not all workers wait at one time."""

RESTING_TURNS = 10_000
"""Of the loop: in 200 the busiest test of all has come to rest."""
QUICK_FILES = 5
"""That are begun after each of these, so that while some workers wait others compute."""


def pytest_configure(config: pytest.Config) -> None:
    """Compile the sources once, before the tests start hundreds of processes from them.

    Where PYTHONDONTWRITEBYTECODE is set, as in many containers, each process would compile the whole package again.
    """
    for number in (signal.SIGHUP, signal.SIGINT):
        # Of a run in the background, as by nohup: what the tests start would ignore them too, but for a handler.
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    is_parallel, is_worker = bool(config.getoption("numprocesses", None)), hasattr(config, "workerinput")
    # A run in one process compiles what it imports, and no more: some run a single test.
    compiles = not is_worker and (is_parallel or sys.dont_write_bytecode)
    # pytest writes what it makes of test files with their assertions: the next run need not do it again.
    sys.dont_write_bytecode = False
    # The order is ours, below: pytest-xdist's would be by number of tests.
    config.option.loadscopereorder = False
    if compiles:
        for folder in ("runtime", "services", "tests"):
            compileall.compile_dir(ROOT / folder, quiet=2, rx=re.compile("node_modules"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """More than processors: the tests wait for processes and connections about as long as they compute."""
    return len(os.sched_getaffinity(0)) + 3


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Thousands of tests live until the end of the run: the garbage collector looks at them neither while they are
    made, which is a third of that time, nor with each collection afterwards. It looks less often than by default, as
    tests that explore states or parse sources make objects by the million: a twentieth of a worker's time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(10_000, 10, 10)
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a parallel run, whose unit is a file: the longest files first, which mostly wait, each before some that mostly
    compute, then slow ones, then those with most tests."""
    if hasattr(config, "workerinput"):
        tests = Counter(item.path for item in items)
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        longest = [path for name in LONGEST if (path := ROOT / "tests" / name) in tests]
        by_tests = sorted(tests, key=lambda path: -tests[path])
        quick = (path for path in by_tests if path not in slow and path not in longest)
        mixed = [path for each in longest for path in (each, *itertools.islice(quick, QUICK_FILES))]
        rest = sorted(set(by_tests) - set(mixed), key=lambda path: (path not in slow, by_tests.index(path)))
        rank = {path: number for number, path in enumerate((*mixed, *rest))}
        items.sort(key=lambda item: rank[item.path])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Leave the environment as the test has found it. A command that is run in our process sets what grpc and
    OpenTelemetry read when they are imported: the apps of all later tests would inherit it, in this worker alone."""
    environment = os.environ.copy()
    try:
        return (yield)
    finally:
        if os.environ != environment:
            os.environ.clear()
            os.environ.update(environment)


def pytest_itemcollected(item: pytest.Item) -> None:
    """End a coroutine test that hangs from within, so that it cleans up, and the tests after it do not fail as well."""
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
        item.obj = bounded(item.obj)


def bounded(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def run(**fixtures: Any) -> None:
        # In a task and a context of its own: anyio runs all tests in one task, which a cancellation would end, and in
        # whose context one test would see what another has set.
        task = asyncio.get_running_loop().create_task(test(**fixtures))
        stood_at = ""
        try:
            await asyncio.wait([task], timeout=BOUND_S)
        finally:
            if not task.done():
                stood_at = f"{awaiting(task)}\n{await asyncio.to_thread(running_apps)}"
                task.cancel()
                await asyncio.wait([task])
        if stood_at:
            pytest.fail(f"not ended after {BOUND_S:.0f} s, when it stood at\n{stood_at}")
        if task.cancelled():
            pytest.fail("the test was cancelled from inside")
        task.result()
        if busy_with := await never_resting():
            pytest.fail(f"the loop never rests after it: {busy_with}")

    return run


async def never_resting() -> str:
    """What the loop still has to call after thousands of turns; "". All tests of a worker share it: a callback that
    schedules itself for ever takes a processor from all that come after its own."""
    loop: Any = asyncio.get_running_loop()
    for _ in range(RESTING_TURNS):
        if not loop._ready:
            return ""
        await asyncio.sleep(0)
    return str(loop._ready[0]) if loop._ready else ""


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
async def one_loop(anyio_backend: str) -> AsyncIterator[None]:
    """Holds one event loop for the session: grpc.aio keeps every loop it has seen, and wakes them all."""
    yield  # noqa: PT022 - a generator holds the loop until the session ends


@pytest.fixture(scope="module", params=["processes", "inline", "grpcio"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    """The echo app on two shards: each in a process of its own, both in one, or on grpcio's listener."""
    inline = ["--inline"] if request.param == "inline" else []
    listener = "grpcio" if request.param == "grpcio" else "native"
    toml = echo(2, "reflection = true", "open_status = true", f'listener = "{listener}"')
    with running(tmp_path_factory.mktemp("cluster"), toml, *inline) as app:
        yield app


class Where:
    """Stubs of one app on stock grpc.aio channels, one to each shard's own port and one to the shared."""

    def __init__(self, cluster: RunningApp, name: str = "echo") -> None:
        """name: of the app, in which the servicer is an `Echo`."""
        self.placement = cluster.placement(name)
        self.channels = {m.name: grpc.aio.insecure_channel(m.address) for m in self.placement.members}
        self.stubs = {name: echo_pb2_grpc.EchoStub(channel) for name, channel in self.channels.items()}
        self.shared_channel = grpc.aio.insecure_channel(cluster.listen[name])
        self.shared = echo_pb2_grpc.EchoStub(self.shared_channel)

    def owner_of(self, key: str) -> str:
        return self.placement.owner_of(key).name

    def keys_of(self, shard: str) -> Iterator[str]:
        """Keys that this shard owns, without end. Which these are depends on the ports of this run."""
        return (key for key in map(str, itertools.count()) if self.owner_of(key) == shard)

    def key_of(self, shard: str) -> str:
        return next(self.keys_of(shard))

    def home(self, key: str) -> "echo_pb2_grpc.EchoAsyncStub":
        """A stub whose connection ends at the key's owner."""
        return self.stubs[self.owner_of(key)]

    def away(self, key: str) -> "echo_pb2_grpc.EchoAsyncStub":
        """A stub whose connection ends at a shard that does not own the key."""
        return next(stub for name, stub in self.stubs.items() if name != self.owner_of(key))

    async def begun(self, *, at: str) -> list[str]:
        """The keys of all orders `wait KEY` that have begun at the owner of the key `at`."""
        # By a key whose turn is free.
        aside = next(key for key in self.keys_of(self.owner_of(at)) if key != at)
        call = self.home(aside).Misbehave(EchoRequest(key=aside, order="began"))
        return str(dict(await call.trailing_metadata())["x-began"]).split()

    async def wait_begun(self, key: str) -> None:
        """Wait until a call of this key has begun to carry out the order `wait KEY`, and holds the key's turn."""
        while key not in await self.begun(at=key):
            pass

    async def close(self) -> None:
        for channel in (*self.channels.values(), self.shared_channel):
            await channel.close()


async def late_words(make_call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    """How a call ends whose deadline passes in a shard, in the words of the shard.

    It says so 50 ms before the deadline; on a busy machine the client may be faster all the same: then once more.
    """
    while True:
        call = make_call()
        code, details = await call.code(), await call.details()
        if details != "Deadline Exceeded":
            return code, details


@pytest.fixture
async def where(cluster: RunningApp) -> AsyncIterator[Where]:
    where = Where(cluster)
    yield where
    await where.close()
