"""Whatever a handler does wrong, its own call ends at once with the right status and one log line that names the line
of the service; other calls notice nothing: not on the same connection, not forwarded, not after steering."""

import asyncio
import inspect
import itertools
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.conftest import Where
from tests.faulty import interceptors, service
from tests.faulty.misdeeds import ASYNC, MISDEEDS
from tests.faulty.v1 import faulty_pb2_grpc
from tests.faulty.v1.faulty_pb2 import Order, Reply
from tests.running_app import RunningApp, eventually, running

pytestmark = pytest.mark.slow
LOCAL = [("grpc.use_local_subchannel_pool", 1)]
TIMEOUT_S = 70.0
UPLOADS = {"AsyncUpload", "PlainUpload", "PlainStream"}
STREAMS = {"AsyncStream", "Writer", "PlainStream", "PlainList"}
WAITING = ASYNC | {"PlainUpload", "PlainStream"}
"""The methods that can wait; a plain `def` without a stream of requests runs in one go."""
KINDS = [(name, method, False) for name, misdeed in MISDEEDS.items() for method in sorted(misdeed.methods)]
KINDS += [(name, method, True) for name, method, _ in KINDS if method in WAITING]
"""Every misdeed in every kind of handler, before and after it has waited."""
METHODS = sorted({method for _, method, _ in KINDS})
AT_ONCE = 32
UNLOGGED = {"", "call.failed"}
"""Misdeeds that gRPC allows, and those that another test finds in the log by the id in their status."""
Kind = tuple[str, str, bool]


@pytest.fixture(scope="module", params=["native", "grpcio"])
def app(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    settings = 'services = ["tests.faulty.service:Faulty"]\nlisten = "127.0.0.1:0"\nshards = 2'
    settings += f'\nlistener = "{request.param}"'
    behind = settings.replace("shards = 2", 'shards = 1\ninterceptors = ["tests.faulty.interceptors:Faulty"]')
    toml = f"[apps.echo]\n{settings}\n[apps.behind]\n{behind}"
    with running(tmp_path_factory.mktemp(request.param), toml) as app:
        yield app


@pytest.fixture
async def where(app: RunningApp) -> AsyncIterator[Where]:
    where = Where(app)
    yield where
    await where.close()


class Outcomes:
    """The outcome of each kind of misdeed."""

    def __init__(self, app: RunningApp) -> None:
        self.app = app
        self.statuses: dict[Kind, tuple[str, str]] = {}
        """Name and details."""

    def wrong(self) -> dict[Kind, str]:
        """The misdeeds whose call has ended otherwise than it should."""
        is_native = "native" in self.app.log.parent.name
        return {
            kind: f"{code} {details}"
            for kind, (code, details) in self.statuses.items()
            if code != (MISDEEDS[kind[0]].code if is_native else MISDEEDS[kind[0]].grpcio_code)
        }

    def unlogged(self) -> dict[Kind, str]:
        """The misdeeds with an error whose call has not one log line that names its method and the line to look at."""
        by_id = failures_by_id(self.app)
        faults = {}
        for kind, (code, details) in self.statuses.items():
            name, method, _ = kind
            if MISDEEDS[name].event == "call.failed" and code == "INTERNAL":
                lines = by_id.get(details.rpartition(" ")[2], [])
                if len(lines) != 1 or f"method=faulty.v1.Faulty/{method} " not in lines[0] or not names(name, lines[0]):
                    faults[kind] = f"{details}: {lines}"
        return faults


def failures_by_id(app: RunningApp) -> dict[str, list[str]]:
    """The log lines of failed calls by the id that the client was told."""
    by_id: dict[str, list[str]] = {}
    for line in re.findall(r"^.*call\.failed id=.*$", app.log.read_text(), re.MULTILINE):
        by_id.setdefault(line.partition(" id=")[2][:12], []).append(line)
    return by_id


def names(misdeed: str, log_line: str) -> bool:
    """Whether a log line names the line of a misdeed, or of the handler that awaits it or answers with it."""
    match = re.search(r" at=(\S+)", log_line)
    own = match is not None and MISDEEDS[misdeed].is_line(match[1])
    return own or (match is not None and match[1].startswith(f"{inspect.getsourcefile(service)}:"))


async def outcome(channel: grpc.aio.Channel, key: str, kind: Kind, metadata: Any = ()) -> tuple[str, str]:
    """Have a handler do it: name and details of the status."""
    name, method, waits = kind
    stub: Any = faulty_pb2_grpc.FaultyStub(channel)
    if method not in UPLOADS:
        order = Order(key=key, misdeed=name, waits=waits)
        call = getattr(stub, method)(order, timeout=TIMEOUT_S, metadata=metadata)
    else:
        call = getattr(stub, method)(timeout=TIMEOUT_S, metadata=metadata)
        try:
            if waits:
                await call.write(Order(key=key, misdeed=name, waits=True))
                if method in STREAMS:
                    await call.read()
            await call.write(Order(key=key, misdeed=name))
            await call.done_writing()
        except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
            # The handler has ended the call already.
            pass
    try:
        if method in STREAMS:
            while await call.read() is not grpc.aio.EOF:
                pass
    except grpc.aio.AioRpcError:
        pass
    return (await call.code()).name, await call.details() or ""


def hold(channel: grpc.aio.Channel, key: str) -> Any:
    """A call that is held until `release`."""
    return faulty_pb2_grpc.FaultyStub(channel).Hold(Order(key=key), timeout=TIMEOUT_S * 2)


async def release(where: Where, keys: set[str]) -> None:
    for key in keys:
        channel = where.channels[where.owner_of(key)]
        await faulty_pb2_grpc.FaultyStub(channel).Release(Order(key=key), timeout=TIMEOUT_S)


async def misbehave(app: RunningApp, where: Where, channel: grpc.aio.Channel, key: str, beside: str) -> Outcomes:
    """Have handlers do all misdeeds, on one connection. key: of them; beside: of calls that wait meanwhile, on the same
    connection and of another client, whose calls are forwarded."""
    outcomes = Outcomes(app)
    away = where.channels[next(name for name in where.channels if name != where.owner_of(beside))]
    waiting = [hold(channel, beside), hold(away, beside)]
    for first in range(0, len(KINDS), AT_ONCE):
        kinds = KINDS[first : first + AT_ONCE]
        statuses = await asyncio.gather(*(outcome(channel, key, kind) for kind in kinds))
        outcomes.statuses |= zip(kinds, statuses, strict=True)
    await release(where, {beside})
    for call in waiting:
        assert (await call).text == "held"
    return outcomes


@pytest.mark.parametrize("way", ["home", "forwarded"])
async def test_a_misdeed_ends_its_own_call_with_a_status_and_a_log_line(
    app: RunningApp, where: Where, way: str
) -> None:
    keys = where.keys_of("echo-0")
    channel = where.channels["echo-0" if way == "home" else "echo-1"]
    outcomes = await misbehave(app, where, channel, next(keys), next(keys))
    assert outcomes.wrong() == {}
    assert outcomes.unlogged() == {}


async def test_a_connection_goes_on_after_a_misdeed_in_its_first_call(app: RunningApp, where: Where) -> None:
    """Half of them are steered, natively: their first call is replayed while the connection is made."""
    outcomes, key = Outcomes(app), where.key_of("echo-0")

    async def connect_and_call(kind: Kind) -> None:
        async with grpc.aio.insecure_channel(app.listen["echo"], LOCAL) as channel:
            outcomes.statuses[kind] = await outcome(channel, key, kind)
            # `wait_for_ready` is not set: were the connection closed, or never read again, this call would fail.
            stub = faulty_pb2_grpc.FaultyStub(channel)
            assert await stub.Release(Order(key=key), timeout=TIMEOUT_S) == Reply()

    # Which connections are steered is the kernel's choice: of each misdeed's several kinds some, nearly always.
    for first in range(0, len(KINDS), AT_ONCE):
        await asyncio.gather(*map(connect_and_call, KINDS[first : first + AT_ONCE]))
    assert outcomes.wrong() == {}
    assert outcomes.unlogged() == {}
    if "native" in app.log.parent.name:
        await eventually(lambda: app.metric("onelane_connections_total", onelane_connection_steered="true"))


async def test_what_is_answered_otherwise_than_it_was_meant_is_logged_once_with_its_line(
    app: RunningApp, where: Where
) -> None:
    key, logged = where.key_of("echo-0"), [name for name, each in MISDEEDS.items() if each.event not in UNLOGGED]
    for name in logged:
        for method in sorted({"Async", "Plain"} & MISDEEDS[name].methods):
            length, event = len(app.log.read_text()), MISDEEDS[name].event
            await outcome(where.channels["echo-0"], key, (name, method, False))

            def lines(length: int = length, event: str = event) -> list[str]:
                return [line for line in app.log.read_text()[length:].splitlines() if f" {event} " in line]

            # grpcio's listener calls a callback after the answer.
            await eventually(lines)
            assert len(lines()) == 1
            assert f"method=faulty.v1.Faulty/{method} " in lines()[0]
            assert names(name, lines()[0]), lines()


async def test_a_misdeed_of_an_interceptor_ends_its_own_call_with_a_status_and_a_log_line(app: RunningApp) -> None:
    outcomes, files = {}, [inspect.getsourcefile(module) for module in (interceptors, service)]
    async with grpc.aio.insecure_channel(app.listen["behind"], LOCAL) as channel:
        stub: Any = faulty_pb2_grpc.FaultyStub(channel)
        waiting = hold(channel, "beside")
        for name, method in itertools.product(interceptors.EXPECTED, METHODS):
            outcomes[name, method] = await outcome(channel, "k", ("none", method, False), (("misdeed", name),))
        await stub.Release(Order(key="beside"), timeout=TIMEOUT_S)
        assert (await waiting).text == "held"
    wrong, by_id = {}, failures_by_id(app)
    for (name, method), (code, details) in outcomes.items():
        lines = by_id.get(details.rpartition(" ")[2], [])
        is_named = len(lines) == 1 and any(f" at={file}:" in lines[0] for file in files) and "sesame" not in details
        is_badly_logged = code == "INTERNAL" and name != "leaks_a_cancellation" and not is_named
        if code != interceptors.EXPECTED[name] or is_badly_logged:
            wrong[name, method] = f"{code} {details}: {lines}"
    assert wrong == {}, "\n".join(map(str, wrong.items()))
