"""Calls of one key run one after the other, also across their awaits; what waits is bounded; cycles do not deadlock."""

import asyncio
import itertools
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from onelane.core.turns import MAX_CHAIN_LINKS, Turn, Turns, holders
from onelane.errors import Overloaded

from tests.bounds import BOUND_S
from tests.conftest import Where
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.running_app import ECHO, RunningApp, eventually, running

PER_KEY, IN_ALL = 3, 5
KEYS = "ab"


def made(per_key: int = 9, in_all: int = 9) -> Turns:
    return Turns("s-0", draw=iter(range(1, 10_000)).__next__, per_key=per_key, in_all=in_all)


# The queue itself, against a plain model


class Machine(RuleBasedStateMachine):
    """Visitors enter, come back through their chain, leave and give up, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = made(PER_KEY, IN_ALL)
        self.inside: dict[str, list[str]] = {key: [] for key in KEYS}
        """Who is in a key: its holder, and those of its chain."""
        self.queue: dict[str, deque[str]] = {key: deque() for key in KEYS}
        self.turn_of: dict[str, Turn] = {}
        self.numbers = iter(range(1, 10_000))

    def _all_waiting(self) -> int:
        return sum(map(len, self.queue.values()))

    @rule(key=st.sampled_from(KEYS))
    def enter(self, key: str) -> None:
        visitor = f"v{next(self.numbers)}"
        full = bool(self.inside[key]) and (len(self.queue[key]) >= PER_KEY or self._all_waiting() >= IN_ALL)
        if full:
            with pytest.raises(Overloaded):
                self.turns.enter(key, "M", "", visitor)
            return
        turn = self.turns.enter(key, "M", "", visitor)
        if self.inside[key]:
            assert turn is None
            self.queue[key].append(visitor)
        else:
            assert turn is not None
            self.inside[key], self.turn_of[visitor] = [visitor], turn

    @precondition(lambda self: any(self.inside.values()))
    @rule(data=st.data())
    def come_back(self, data: Any) -> None:
        key = data.draw(st.sampled_from([key for key in KEYS if self.inside[key]]))
        visitor = f"v{next(self.numbers)}"
        chain = self.turn_of[self.inside[key][0]].outgoing_chain("")
        turn = self.turns.enter(key, "M", f"00000000deadbeef@x/M,{chain}", visitor)
        assert turn is not None
        self.inside[key].append(visitor)
        self.turn_of[visitor] = turn

    @precondition(lambda self: any(self.inside.values()))
    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        key = data.draw(st.sampled_from([key for key in KEYS if self.inside[key]]))
        visitor = data.draw(st.sampled_from(self.inside[key]))
        self.inside[key].remove(visitor)
        following = self.turns.leave(self.turn_of.pop(visitor))
        if self.inside[key] or not self.queue[key]:
            assert following is None
            return
        assert following is not None
        assert following[0] == self.queue[key].popleft()
        self.inside[key], self.turn_of[following[0]] = [following[0]], following[1]

    @precondition(lambda self: self._all_waiting())
    @rule(data=st.data())
    def give_up(self, data: Any) -> None:
        key = data.draw(st.sampled_from([key for key in KEYS if self.queue[key]]))
        visitor = data.draw(st.sampled_from(list(self.queue[key])))
        self.queue[key].remove(visitor)
        self.turns.withdraw(key, visitor)

    @invariant()
    def what_waits_is_counted_and_free_keys_are_forgotten(self) -> None:
        assert self.turns.waiting == self._all_waiting()
        assert set(self.turns.held) == {key for key in KEYS if self.inside[key]}


def test_turns_do_what_a_plain_model_says() -> None:
    run_state_machine_as_test(Machine, settings=settings(max_examples=150, stateful_step_count=40, deadline=None))


def test_a_turn_that_has_ended_lets_its_chain_in_no_more() -> None:
    turns = made()
    first = turns.enter("k", "M", "", "one")
    assert first is not None
    chain = first.outgoing_chain("")
    turns.leave(first)
    assert turns.enter("k", "M", "", "two") is not None
    assert turns.enter("k", "M", chain, "one again") is None


def test_a_guessed_chain_lets_nobody_in() -> None:
    turns = made()
    assert turns.enter("k", "M", "", "one") is not None
    assert turns.enter("k", "M", "0000000000000000@s-0/M", "stranger") is None


def test_a_chain_names_its_holders_and_is_bounded() -> None:
    turns = made()
    chain = ""
    for n in range(MAX_CHAIN_LINKS + 3):
        turn = turns.enter(f"k{n}", f"p.S/M{n}", "", "one")
        assert turn is not None
        chain = turn.outgoing_chain(chain)
        assert turn.outgoing_chain(chain) == chain
    assert len(holders(chain)) == MAX_CHAIN_LINKS
    assert holders(chain)[-1] == f"s-0/p.S/M{MAX_CHAIN_LINKS + 2}"


# Real shards

HOST = 'listen = "127.0.0.1:0"'
LISTENERS = ["native", "grpcio"]


def apps(listener: str, *more: str) -> str:
    settings = [ECHO, HOST, f'listener = "{listener}"', "max_waiting_per_key = 50", *more]
    return "\n".join(["[apps.echo]", *settings, "shards = 1", "[apps.other]", *settings, "shards = 1"])


@pytest.fixture(scope="module", params=LISTENERS)
def two(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[RunningApp]:
    """The apps `echo` and `other`, one shard each, which watch each other's topology."""
    with running(tmp_path_factory.mktemp("turns"), apps(request.param, "show_runtime_calls = true")) as cluster:
        for app, peer in (("echo", "other"), ("other", "echo")):
            with grpc.insecure_channel(cluster.listen[app]) as channel:
                request_ = EchoRequest(key="first", order=f"call {peer} first add 0")
                echo_pb2_grpc.EchoStub(channel).Misbehave(request_, timeout=BOUND_S)
        while not all(cluster.in_flight(onelane_app=app) for app in ("echo", "other")):
            pass
        yield cluster


def stub_of(cluster: RunningApp, app: str = "echo") -> tuple[Any, Any]:
    channel = grpc.aio.insecure_channel(cluster.listen[app])
    return channel, echo_pb2_grpc.EchoStub(channel)


async def added(call: Any) -> int:
    await call
    return int(dict(await call.trailing_metadata())["x-added"])


class UnderWay:
    """How many calls more are under way in the app `echo` than there were: topology is watched by some all the time."""

    def __init__(self, cluster: RunningApp) -> None:
        self._cluster = cluster
        self._before = 0.0
        self._before = self.count()

    def count(self) -> float:
        return self._cluster.in_flight(onelane_app="echo") - self._before

    async def wait(self, at_least: int) -> None:
        await eventually(lambda: self.count() >= at_least)

    async def wait_over(self) -> None:
        """So that the next test finds none of these."""
        await eventually(lambda: self.count() <= 0)


pytestmark = pytest.mark.slow


async def test_unary_calls_of_one_key_never_interleave(two: RunningApp) -> None:
    channel, stub = stub_of(two)
    async with channel:
        calls = [stub.Misbehave(EchoRequest(key="same", order="add 7")) for _ in range(30)]
        seen = [await added(call) for call in calls]
        assert sorted(seen) == list(range(min(seen), min(seen) + 30))


async def test_calls_of_a_free_method_do(tmp_path: Path) -> None:
    """So that the test above can fail."""
    with running(tmp_path, apps("native", 'turns."echo.v1.Echo/Misbehave" = "FREE"')) as cluster:
        channel, stub = stub_of(cluster)
        async with channel:
            calls = [stub.Misbehave(EchoRequest(key="same", order="then both add 1")) for _ in range(2)]
            where = Where(cluster)
            while (await where.begun(at="same")).count("both") < 2:
                pass
            await where.close()
            await stub.Release(EchoRequest(key="both"))
            assert [await added(call) for call in calls] == [1, 1]


async def test_a_waiting_call_lets_other_keys_and_free_methods_go_on_and_holds_its_own(two: RunningApp) -> None:
    channel, stub = stub_of(two)
    async with channel:
        under_way = UnderWay(two)
        holding = stub.Misbehave(EchoRequest(key="h", order="wait h"))
        await under_way.wait(1)
        waiting = []
        for n in range(5):
            waiting.append(stub.Unary(EchoRequest(key="h", text=str(n))))
            # One by one: gRPC sends in no certain order what is called at once.
            await under_way.wait(n + 2)
        plain = stub.Plain(EchoRequest(key="h", text="plain"))
        await under_way.wait(7)
        assert (await stub.Unary(EchoRequest(key="i", text="x"))).text == "x"
        assert not any(call.done() for call in (*waiting, plain))
        await stub.Release(EchoRequest(key="h"))
        replies = [await call for call in (*waiting, plain)]
        assert [reply.text for reply in replies] == ["0", "1", "2", "3", "4", "plain"]
        assert [reply.seen for reply in replies] == list(range(replies[0].seen, replies[0].seen + 6))
        await holding


async def test_a_call_that_comes_back_to_its_key_through_another_app_enters(two: RunningApp) -> None:
    channel, stub = stub_of(two)
    async with channel:
        await stub.Misbehave(EchoRequest(key="a", order="call other b call echo a add 3"), timeout=BOUND_S)


async def test_two_chains_that_wait_for_each_other_end_by_deadline_and_name_both(two: RunningApp) -> None:
    echo_app, other_app = Where(two, "echo"), Where(two, "other")
    words, timeout_s = "Deadline Exceeded", 0.5
    # In the words of the shard, unless the machine is so busy that the client's own come first.
    for attempt in itertools.count():
        if words != "Deadline Exceeded":
            break
        request = EchoRequest(key="x", order=f"then x{attempt} call other y add 1")
        first = echo_app.shared.Misbehave(request, timeout=timeout_s)
        request = EchoRequest(key="y", order=f"then y{attempt} call echo x add 1")
        second = other_app.shared.Misbehave(request, timeout=BOUND_S)
        await echo_app.wait_begun(f"x{attempt}")
        await other_app.wait_begun(f"y{attempt}")
        await echo_app.shared.Release(EchoRequest(key=f"x{attempt}"))
        await other_app.shared.Release(EchoRequest(key=f"y{attempt}"))
        assert await first.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        words = await first.details()
        # The other has its way as soon as the first is gone.
        await second
        timeout_s *= 2
    assert "echo.v1.Echo/Misbehave on shard other-0 waited for the turn of its key" in words
    assert "held by echo.v1.Echo/Misbehave" in words
    assert "its own callers hold echo-0/echo.v1.Echo/Misbehave" in words
    await echo_app.close()
    await other_app.close()


async def test_a_call_whose_deadline_passes_while_it_waits_never_runs_nor_one_that_is_cancelled(
    two: RunningApp,
) -> None:
    channel, stub = stub_of(two)
    async with channel:
        under_way = UnderWay(two)
        holding = stub.Misbehave(EchoRequest(key="d", order="wait d"))
        await under_way.wait(1)
        cancelled = stub.Misbehave(EchoRequest(key="d", order="wait gone"))
        await under_way.wait(2)
        cancelled.cancel()
        await eventually(lambda: under_way.count() <= 1)
        has_waited, timeout_s = False, 0.25
        while not has_waited:
            late = stub.Misbehave(EchoRequest(key="d", order="wait late"), timeout=timeout_s)
            while not late.done():
                if await asyncio.to_thread(under_way.count) >= 2:
                    has_waited = True
            assert await late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            timeout_s *= 2
        await stub.Release(EchoRequest(key="d"))
        await holding
        asking = stub.Misbehave(EchoRequest(key="d", order="began"))
        await asking
        began = dict(await asking.trailing_metadata())["x-began"].split()
        assert "d" in began
        assert not {"late", "gone"} & set(began)
        await under_way.wait_over()


async def test_a_full_queue_of_one_key_refuses_at_once(two: RunningApp) -> None:
    channel, stub = stub_of(two)
    async with channel:
        under_way = UnderWay(two)
        holding = stub.Misbehave(EchoRequest(key="f", order="wait f"))
        await under_way.wait(1)
        waiting = [stub.Unary(EchoRequest(key="f")) for _ in range(50)]
        await under_way.wait(51)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Unary(EchoRequest(key="f"), timeout=BOUND_S)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "the queue of one key is full: 50 waiting already" in (caught.value.details() or "")
        await stub.Release(EchoRequest(key="f"))
        await asyncio.gather(holding, *waiting)


async def test_a_stream_takes_a_turn_by_hand(two: RunningApp) -> None:
    channel, stub = stub_of(two)

    async def chat() -> None:
        async for _ in stub.Chat(iter([EchoRequest(key="t", order="turn")] * 5)):
            pass

    async with channel:
        before = await added(stub.Misbehave(EchoRequest(key="t", order="add 1")))
        await asyncio.gather(*(chat() for _ in range(6)))
        assert await added(stub.Misbehave(EchoRequest(key="t", order="add 1"))) == before + 31
