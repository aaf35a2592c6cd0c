"""Calls to what is late or gone: tried again where that is safe, within a budget; hedged; sent elsewhere; refused."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane import config
from onelane.client.channel import NativeChannel
from onelane.client.outlier import CONSECUTIVE, LONGEST_EJECTION_S, WINDOW, Endpoint
from onelane.client.retry import AGAIN, ONCE, Budget, Policy, policy_of, pushback_s, wait_s
from onelane.client.ring_channel import Owner
from onelane.core.placement import Member, Placement
from onelane.core.service_config import RetryThrottling, ServiceConfig
from onelane.errors import BadService
from onelane.testing import Cluster
from onelane.testing.faults import Fault, Faults

from services.arena.v1 import lobby_pb2, lobby_pb2_grpc
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoReply, EchoRequest
from tests.running_app import ROOT

ARENA = ROOT / "services" / "arena" / "onelane.toml"
RETRY = {
    "maxAttempts": 4,
    "initialBackoff": "0.001s",
    "maxBackoff": "0.01s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", 10],
}
WHO = [{"service": "echo.v1.Echo", "method": "Who"}]

# Decisions, purely


def said(**config: Any) -> ServiceConfig:
    return ServiceConfig.model_validate({"methodConfig": [{"name": WHO, **config}]})


def test_only_what_is_safe_to_repeat_is_tried_again_unless_a_service_config_says_so() -> None:
    nothing = ServiceConfig()
    assert policy_of("echo.v1.Echo/Who", "NO_SIDE_EFFECTS", nothing) == AGAIN
    assert policy_of("echo.v1.Echo/Who", "IDEMPOTENT", nothing) == AGAIN
    assert policy_of("echo.v1.Echo/Who", "", nothing) == ONCE
    told = policy_of("echo.v1.Echo/Who", "", said(retryPolicy=RETRY, timeout="1.5s", waitForReady=True))
    assert told.codes == frozenset({"UNAVAILABLE", "ABORTED"})
    assert (told.attempts, told.timeout_s, told.wait_for_ready) == (4, 1.5, True)
    assert policy_of("echo.v1.Echo/Unary", "", said(retryPolicy=RETRY)) == ONCE


def test_hedging_of_what_may_have_side_effects_is_refused() -> None:
    hedging = said(hedgingPolicy={"maxAttempts": 3, "hedgingDelay": "0.1s"})
    assert policy_of("echo.v1.Echo/Who", "NO_SIDE_EFFECTS", hedging).hedge_after_s == 0.1
    for level in ("IDEMPOTENT", ""):
        with pytest.raises(BadService, match="hedgingPolicy makes a call several times"):
            policy_of("echo.v1.Echo/Who", level, hedging)


@given(st.integers(1, 5), st.floats(0.001, 1), st.floats(0.001, 5), st.floats(1, 3), st.integers())
def test_the_wait_is_full_jitter_within_the_backoff(
    made: int, initial: float, longest: float, growth: float, seed: int
) -> None:
    policy = Policy(6, initial, longest, growth, frozenset({"UNAVAILABLE"}))
    wait = wait_s(policy, made, "UNAVAILABLE", None, Budget(RetryThrottling()), Random(seed))
    assert wait is not None
    assert 0 <= wait <= min(longest, initial * growth ** (made - 1))


def test_a_server_says_when_to_come_back_or_that_nobody_should() -> None:
    rng, budget = Random(1), Budget(RetryThrottling())
    assert wait_s(AGAIN, 1, "RESOURCE_EXHAUSTED", None, budget, rng) is None
    assert wait_s(AGAIN, 1, "RESOURCE_EXHAUSTED", 0.25, budget, rng) == 0.25
    assert wait_s(AGAIN, 1, "UNAVAILABLE", -1.0, budget, rng) is None
    assert wait_s(AGAIN, AGAIN.attempts, "UNAVAILABLE", None, budget, rng) is None
    assert pushback_s([("grpc-retry-pushback-ms", "250")]) == 0.25
    assert pushback_s([("grpc-retry-pushback-ms", "never")]) == -1.0
    assert pushback_s([("other", "1")]) is None


@given(st.lists(st.booleans(), max_size=200))
def test_the_budget_lets_no_more_through_than_it_should(succeeds: list[bool]) -> None:
    budget = Budget(RetryThrottling(maxTokens=10, tokenRatio=0.1))
    tokens = 10.0
    for good in succeeds:
        tokens = min(10.0, tokens + 0.1) if good else max(0.0, tokens - 1)
        budget.succeeded() if good else budget.failed()
        assert budget.tokens == pytest.approx(tokens)
        assert budget.allows is (budget.tokens > 5)


def test_failures_in_a_row_eject_an_endpoint_and_one_probe_decides() -> None:
    endpoint, now = Endpoint(), 100.0
    assert [endpoint.ended("UNAVAILABLE", now) for _ in range(CONSECUTIVE)] == [False] * (CONSECUTIVE - 1) + [True]
    assert not endpoint.allows(now + 0.99)
    assert endpoint.allows(now + 1.0)
    assert not endpoint.allows(now + 1.0), "one probe at a time"
    assert endpoint.ended("UNAVAILABLE", now + 1.1)
    assert not endpoint.allows(now + 3.0)
    assert endpoint.allows(now + 3.2)
    assert not endpoint.ended("OK", now + 3.3)
    assert [endpoint.allows(now + 3.4) for _ in range(3)] == [True] * 3


def test_a_share_of_failures_ejects_as_well_and_statuses_of_the_call_itself_do_not() -> None:
    endpoint = Endpoint()
    assert not any(endpoint.ended("NOT_FOUND", 1.0) for _ in range(WINDOW * 2))
    ejected = [endpoint.ended("DEADLINE_EXCEEDED" if number % 2 else "OK", 1.0) for number in range(WINDOW + 4)]
    assert ejected.count(True) == 1


@given(st.lists(st.tuples(st.sampled_from(["OK", "UNAVAILABLE", "NOT_FOUND"]), st.floats(0, 40)), max_size=120))
def test_an_ejected_endpoint_is_always_asked_again(steps: list[tuple[str, float]]) -> None:
    endpoint, now = Endpoint(), 0.0
    for code, pause in steps:
        now += pause
        if endpoint.allows(now):
            endpoint.ended(code, now)
    assert endpoint.allows(now + LONGEST_EJECTION_S) or not endpoint.is_ejected


# Real calls, to a stock server that does what a test says


class Scripted(grpc.GenericRpcHandler):
    """Answers each call of any unary method with the next of `steps`: a status, seconds to wait, or an answer; or what
    returns one of these when the call has come."""

    def __init__(self) -> None:
        self.steps: list[Any] = []
        self.trailers: tuple[tuple[str, str], ...] = ()
        self.seen: list[dict[str, Any]] = []
        self.cancelled = 0

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if "Topology" in handler_call_details.method:
            return None
        return grpc.unary_unary_rpc_method_handler(
            self.answer, EchoRequest.FromString, lambda reply: reply.SerializeToString()
        )

    async def answer(self, request: EchoRequest, context: Any) -> EchoReply:
        number = len(self.seen)
        self.seen.append(dict(context.invocation_metadata()))
        step = self.steps.pop(0) if self.steps else "done"
        if callable(step):
            step = step()
        if isinstance(step, grpc.StatusCode):
            await context.abort(step, "as the test says", self.trailers)
        if isinstance(step, float):
            try:
                await asyncio.sleep(step)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return EchoReply(text=f"{number}")


@pytest.fixture
async def server() -> AsyncIterator[tuple[Scripted, str]]:
    scripted = Scripted()
    made = grpc.aio.server(handlers=[scripted])
    port = made.add_insecure_port("127.0.0.1:0")
    await made.start()
    yield scripted, f"127.0.0.1:{port}"
    await made.stop(None)


UNAVAILABLE, ABORTED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED


async def test_a_safe_call_is_tried_again_and_says_how_often(server: tuple[Scripted, str]) -> None:
    scripted, address = server
    scripted.steps = [UNAVAILABLE, UNAVAILABLE]
    async with onelane.connect(address) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        call = stub.Who(EchoRequest(text="x"), timeout=10)
        assert (await call).text == "2"
        assert await call.code() is grpc.StatusCode.OK
    assert [seen.get("grpc-previous-rpc-attempts") for seen in scripted.seen] == [None, "1", "2"]


async def test_attempts_are_bounded_and_the_last_status_counts(server: tuple[Scripted, str]) -> None:
    scripted, address = server
    scripted.steps = [UNAVAILABLE] * 9
    async with onelane.connect(address) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        call = stub.Who(EchoRequest(), timeout=10)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is UNAVAILABLE
        assert len(scripted.seen) == AGAIN.attempts


async def test_a_call_that_may_have_had_effects_is_made_once(server: tuple[Scripted, str]) -> None:
    scripted, address = server
    scripted.steps = [UNAVAILABLE]
    async with onelane.connect(address) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Unary(EchoRequest(key="k"), timeout=10)
    assert len(scripted.seen) == 1


async def test_a_service_config_asks_for_retries_of_any_method(server: tuple[Scripted, str]) -> None:
    scripted, address = server
    scripted.steps = [ABORTED, UNAVAILABLE, ABORTED]
    config = {"methodConfig": [{"name": [{"service": "echo.v1.Echo"}], "retryPolicy": RETRY}]}
    async with onelane.connect(address, service_config=config) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        assert (await stub.Unary(EchoRequest(key="k"), timeout=10)).text == "3"


async def test_there_is_no_attempt_past_the_deadline_and_a_cancelled_call_makes_none(
    server: tuple[Scripted, str],
) -> None:
    scripted, address = server
    scripted.steps, scripted.trailers = [UNAVAILABLE] * 9, (("grpc-retry-pushback-ms", "60000"),)
    async with onelane.connect(address) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        call = stub.Who(EchoRequest(), timeout=5)
        assert await call.code() is UNAVAILABLE
        endless = stub.Who(EchoRequest(), timeout=300)
        while len(scripted.seen) < 2:  # noqa: ASYNC110 - turns of the loop are what is waited for
            await asyncio.sleep(0)
        endless.cancel()
        assert await endless.code() is grpc.StatusCode.CANCELLED
    assert len(scripted.seen) == 2


async def test_a_spent_budget_tries_nothing_again(server: tuple[Scripted, str]) -> None:
    scripted, address = server
    scripted.steps = [UNAVAILABLE] * 99
    config = {"retryThrottling": {"maxTokens": 4, "tokenRatio": 0.1}}
    async with onelane.connect(address, service_config=config) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        made = []
        for _ in range(4):
            before = len(scripted.seen)
            assert await stub.Who(EchoRequest(), timeout=10).code() is UNAVAILABLE
            made.append(len(scripted.seen) - before)
    assert made == [2, 1, 1, 1]


async def test_a_hedged_call_takes_the_first_answer_and_cancels_the_rest(server: tuple[Scripted, str]) -> None:
    scripted, address = server
    scripted.steps = [60.0, 60.0]
    config = {
        "methodConfig": [{"name": WHO, "hedgingPolicy": {"maxAttempts": 3, "hedgingDelay": "0.02s"}}],
    }
    async with onelane.connect(address, service_config=config) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        call = stub.Who(EchoRequest(), timeout=30)
        assert (await call).text == "2"
        assert await call.code() is grpc.StatusCode.OK
        while scripted.cancelled < 2:  # noqa: ASYNC110 - turns of the loop are what is waited for
            await asyncio.sleep(0)


async def test_a_hedged_call_goes_on_after_what_is_not_fatal_and_ends_with_what_is(
    server: tuple[Scripted, str],
) -> None:
    scripted, address = server
    hedging = {"maxAttempts": 3, "hedgingDelay": "60s", "nonFatalStatusCodes": ["UNAVAILABLE"]}
    config = {"methodConfig": [{"name": WHO, "hedgingPolicy": hedging}]}
    async with onelane.connect(address, service_config=config) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        scripted.steps = [UNAVAILABLE, UNAVAILABLE]
        assert (await stub.Who(EchoRequest(), timeout=30)).text == "2"
        scripted.steps = [UNAVAILABLE, ABORTED]
        assert await stub.Who(EchoRequest(), timeout=30).code() is ABORTED
        scripted.steps = [UNAVAILABLE] * 3
        assert await stub.Who(EchoRequest(), timeout=30).code() is UNAVAILABLE
    assert len(scripted.seen) == 3 + 2 + 3


def hedging(delay: str = "60s", **more: Any) -> dict[str, Any]:
    policy = {"maxAttempts": 3, "hedgingDelay": delay, "nonFatalStatusCodes": ["UNAVAILABLE"]}
    return {"methodConfig": [{"name": WHO, "hedgingPolicy": policy}], **more}


async def test_a_spent_budget_ends_a_hedged_call(server: tuple[Scripted, str]) -> None:
    scripted, address = server
    scripted.steps = [UNAVAILABLE] * 99
    config = hedging(retryThrottling={"maxTokens": 2, "tokenRatio": 0.1})
    async with onelane.connect(address, service_config=config) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        assert await stub.Who(EchoRequest(), timeout=30).code() is UNAVAILABLE


@pytest.mark.parametrize("how", ["the call", "who waits for it"])
async def test_a_hedged_call_that_is_cancelled_between_two_attempts_makes_no_other(
    server: tuple[Scripted, str], how: str
) -> None:
    scripted, address = server
    scripted.steps, scripted.trailers = [UNAVAILABLE], (("grpc-retry-pushback-ms", "60000"),)
    async with onelane.connect(address, service_config=hedging()) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        call = stub.Who(EchoRequest(), timeout=300)

        async def wait() -> Any:
            return await call

        waiting = asyncio.create_task(wait())
        while not scripted.seen or call._open:  # noqa: ASYNC110 - turns of the loop are what is waited for
            await asyncio.sleep(0)
        if how == "the call":
            assert call.cancel()
        else:
            waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await call.code() is grpc.StatusCode.CANCELLED
        assert call._timer is None or call._timer.cancelled()


async def test_a_pushback_past_the_deadline_ends_a_hedged_call_at_once(server: tuple[Scripted, str]) -> None:
    scripted, address = server
    scripted.steps, scripted.trailers = [UNAVAILABLE], (("grpc-retry-pushback-ms", "60000"),)
    async with onelane.connect(address, service_config=hedging()) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        # Not DEADLINE_EXCEEDED: it does not wait for what cannot help any more.
        assert await stub.Who(EchoRequest(), timeout=30).code() is UNAVAILABLE


async def test_hedged_attempts_say_how_often_and_a_success_counts_once(server: tuple[Scripted, str]) -> None:
    scripted, address = server
    scripted.steps = [UNAVAILABLE]
    async with onelane.connect(address, service_config=hedging()) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        await stub.Who(EchoRequest(), timeout=30)
        assert [seen.get("grpc-previous-rpc-attempts") for seen in scripted.seen] == [None, "1"]
        assert channel.budget.tokens == pytest.approx(100 - 1 + 0.1)


class EndpointLater(Endpoint):
    """To which a test says how much later it is."""

    later_s = 0.0

    def allows(self, now: float) -> bool:
        return super().allows(now + self.later_s)


async def owned(channel: Any, address: str) -> EndpointLater:
    """Have `channel` take the server for the only shard of an app."""
    channel._follower.cancel()
    native = NativeChannel(address, channel._dialling)
    await native.channel_ready()
    health = EndpointLater()
    channel._owners = {address: Owner(native, health)}
    channel.placement = Placement(1, (Member("a", address, ""),), 8, {})
    return health


KEY = (("onelane-key", "k"),)


async def test_a_retry_that_is_the_probe_ends_the_ejection(server: tuple[Scripted, str]) -> None:
    scripted, address = server
    async with onelane.connect(address) as channel:
        health = await owned(channel, address)
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        for _ in range(CONSECUTIVE):
            health.ended("UNAVAILABLE", time.monotonic())
        assert health.is_ejected
        health.later_s = -3600.0

        def fail_when_the_ejection_ends() -> grpc.StatusCode:
            health.later_s = 3600.0
            return UNAVAILABLE

        # By the shared address; the retry comes when the ejection is over, and is its probe.
        scripted.steps = [fail_when_the_ejection_ends]
        await stub.Who(EchoRequest(), timeout=30, metadata=KEY)
        assert not health.is_ejected


async def test_attempts_that_fail_count_against_their_endpoint_though_a_retry_saves_the_call(
    server: tuple[Scripted, str],
) -> None:
    scripted, address = server
    async with onelane.connect(address) as channel:
        health = await owned(channel, address)
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        scripted.steps = [UNAVAILABLE, "done"] * WINDOW
        for _ in range(WINDOW):
            channel.budget.tokens = 100.0
            await stub.Who(EchoRequest(), timeout=30, metadata=KEY)
            if health.is_ejected:
                return
        pytest.fail("half of the attempts failed, and nobody noticed")


async def test_more_calls_at_once_than_a_peer_may_have_are_refused_unsent(server: tuple[Scripted, str]) -> None:
    scripted, address = server
    scripted.steps = [60.0, 60.0]
    async with onelane.connect(address, service_config={"max_in_flight": 2}, name="peer") as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        held = [stub.Unary(EchoRequest(key="k")) for _ in range(2)]
        refused = stub.Unary(EchoRequest(key="k"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await refused
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.details() == "2 calls to peer are under way already"
        while len(scripted.seen) < 2:  # noqa: ASYNC110 - turns of the loop are what is waited for
            await asyncio.sleep(0)
        for call in held:
            call.cancel()
        assert (await stub.Unary(EchoRequest(key="k"), timeout=10)).text
    assert len(scripted.seen) == 3


# In a whole app


class FlakyProfiles(Faults):
    """A fifth of the reads fail."""

    rules = (Fault("arena.v1.Profile/Get", share=0.2, abort=grpc.StatusCode.UNAVAILABLE),)
    seed = 7


class LateAndLost(Faults):
    rules = (
        Fault("echo.v1.Echo/Unary", drop=True),
        Fault("echo.v1.Echo/Plain", delay_s=0.05),
        Fault("echo.v1.Echo/Download", abort=grpc.StatusCode.DATA_LOSS, details="torn"),
    )


async def test_the_lobby_does_not_notice_that_profiles_fail_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARENA_DB", str(tmp_path / "arena"))
    file = config.load(ARENA)
    flaky = file.apps["profile"].model_copy(update={"interceptors": ("tests.client.test_retry:FlakyProfiles",)})
    patient = ServiceConfig.model_validate(
        {"methodConfig": [{"name": [{"service": "arena.v1.Profile"}], "retryPolicy": RETRY | {"maxAttempts": 5}}]}
    )
    lobby_app = file.apps["lobby"].model_copy(update={"stubs": {"profile": patient}})
    file = file.model_copy(update={"apps": {**file.apps, "profile": flaky, "lobby": lobby_app}})
    async with Cluster(file, shards=2, trace=True) as arena:
        lobby: Any = arena.stub(lobby_pb2_grpc.LobbyStub, app="lobby")
        for number in range(40):
            await lobby.Join(lobby_pb2.JoinRequest(room_id=f"r{number % 5}", player=f"p{number}"))
        retries = await arena.stats("onelane.client.retries", {"onelane.peer": "profile"})
        assert retries > 0
        events = [event for span in arena.spans for event in span.events or ()]
        assert [name for name, _, _ in events].count("onelane.client.retries") == retries
        assert all(attributes["onelane.reason"] == "UNAVAILABLE" for _, attributes, _ in events)


class BrokenProfiles(Faults):
    rules = (Fault("arena.v1.Profile/Get", abort=grpc.StatusCode.INTERNAL),)


async def test_an_owner_that_fails_on_and_on_is_ejected_and_that_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARENA_DB", str(tmp_path / "arena"))
    file = config.load(ARENA)
    broken = file.apps["profile"].model_copy(update={"interceptors": ("tests.client.test_retry:BrokenProfiles",)})
    file = file.model_copy(update={"apps": {**file.apps, "profile": broken}})
    async with Cluster(file, shards=1) as arena:
        lobby: Any = arena.stub(lobby_pb2_grpc.LobbyStub, app="lobby")
        join = lobby_pb2.JoinRequest(room_id="r", player="p")
        # Until the topology is known calls go by the shared address, which is never ejected.
        while not await arena.stats("onelane.client.ejections", {"onelane.peer": "profile"}):
            assert await lobby.Join(join).code() is grpc.StatusCode.INTERNAL
        # Left alone, it is still reached by the shared address.
        assert await lobby.Join(join).code() is grpc.StatusCode.INTERNAL


async def test_faults_are_late_lost_or_fail_as_they_are_told() -> None:
    settings = {"interceptors": ["tests.client.test_retry:LateAndLost"]}
    async with Cluster("tests.echo.service:Echo", settings=settings) as cluster:
        stub: Any = cluster.stub(echo_pb2_grpc.EchoStub)
        assert await stub.Unary(EchoRequest(key="k"), timeout=0.2).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert (await stub.Plain(EchoRequest(key="k", text="late"), timeout=10)).text == "late"
        assert loop.time() - began >= 0.05
        download = stub.Download(EchoRequest(key="k", times=2), timeout=10)
        with pytest.raises(grpc.aio.AioRpcError, match="torn"):
            await download.read()
