"""Who may call is checked on every way into an app: shared and own ports, streams, forwards, all listeners.

The hostile table of the whole: a stranger who shows nothing, forges what siblings and apps tell each other, or goes
round the shard that checks.
"""

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import onelane
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from onelane.core.identity import Identity, write_assertion, write_identity
from onelane.errors import BadConfig
from onelane.server.listener import Bind
from onelane.v1 import siblings_pb2, siblings_pb2_grpc, topology_pb2, topology_pb2_grpc

from tests.bounds import BOUND_S
from tests.echo.v1 import echo_pb2_grpc
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.issuer import AUDIENCE, ISSUER, Issuer, bearer
from tests.ports import reserved
from tests.running_app import echo, running
from tests.servers import Files, stock_secure
from tests.shard.parts import setup, wired
from tests.shard.shards import Shards

pytestmark = pytest.mark.slow
OWN, STRANGER = Issuer("EdDSA"), Issuer("EdDSA")
SHARDS = 3


def auth(keys_file: str) -> str:
    return f"""
[apps.echo.auth]
jwt = {{ issuer = "{ISSUER}", audience = "{AUDIENCE}", keys_file = "{keys_file}" }}
[apps.echo.auth.methods]
"echo.v1.Echo/*" = ["admin"]
"echo.v1.Echo/Unary" = ["reader", "admin"]
"echo.v1.Echo/Hold" = []
"""


@pytest.fixture(scope="module", params=["native", "grpcio"])
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shards]:
    folder = tmp_path_factory.mktemp("guarded")
    toml = echo(SHARDS, f'listener = "{request.param}"') + auth(OWN.write(folder / "keys.json"))
    with running(folder, toml) as app:
        yield Shards(app)


async def code_of(call: Any) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


ADMIN, READER = bearer(OWN.token("admin", sub="ann")), bearer(OWN.token("reader", sub="bob"))
EVE = Identity("eve", frozenset({"admin", "reader"}), "jwt")
LIES: dict[str, tuple[tuple[str, str], ...]] = {
    "nothing": (),
    "a token of its own making": bearer(STRANGER.token("admin")),
    "what a sibling tells": (
        ("onelane-forwarded", ";1"),
        ("onelane-forwarded-identity", write_identity(EVE).decode()),
    ),
    "an assertion of its own making": (
        ("onelane-identity", write_assertion(EVE, app="echo", to="echo", key=b"k" * 32, now=4e9)),
    ),
    "an assertion on the app's own account": (
        ("onelane-identity", write_assertion(None, app="echo", to="echo", key=b"x" * 32, now=4e9)),
    ),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_stranger_is_refused_on_every_port_and_for_every_owner(guarded: Shards, lie: str) -> None:
    addresses = [guarded.app.listen["echo"], *(member.address for member in guarded.members)]
    for address in addresses:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = echo_pb2_grpc.EchoStub(channel)
            calls = [stub.Unary(EchoRequest(key=key), metadata=LIES[lie], timeout=BOUND_S) for key in guarded.keys]
            assert {await code_of(call) for call in calls} == {"UNAUTHENTICATED"}


async def requests() -> AsyncIterator[EchoRequest]:
    yield EchoRequest(key="a")


@pytest.mark.parametrize(("metadata", "expected"), [((), "UNAUTHENTICATED"), (READER, "PERMISSION_DENIED")])
async def test_streams_and_plain_handlers_are_closed_too(
    guarded: Shards, metadata: tuple[tuple[str, str], ...], expected: str
) -> None:
    # grpcio's own fails a call with "Internal error from Core" where it writes on while the call ends.
    async with onelane.dial(guarded.app.listen["echo"]) as channel:
        stub: Any = echo_pb2_grpc.EchoStub(channel)
        more: Any = {"metadata": metadata, "timeout": 10}
        calls = [
            stub.Plain(EchoRequest(key="a"), **more),
            stub.Upload(requests(), **more),
            stub.PlainUpload(requests(), **more),
            stub.Download(EchoRequest(key="a", times=1), **more).read(),
            stub.Chat(requests(), **more).read(),
        ]
        assert {await code_of(call) for call in calls} == {expected}


async def test_a_stranger_is_refused_before_it_has_sent_a_message() -> None:
    """On the native listener; gRPC's core gives a call to nobody before its message."""
    parts, _ = wired(setup(auth={"methods": {"*": ["admin"]}, "apps": {"lobby": ["admin"]}}, listen="127.0.0.1:0"))
    parts.services.load()
    with reserved() as port:
        await parts.listener.start([Bind(f"127.0.0.1:{port}")], parts.serving, parts.settings)
        async with onelane.dial(f"127.0.0.1:{port}") as channel:
            # As a stream, so that its client need not send the one message, nor half-close.
            call = channel.stream_unary("/echo.v1.Echo/Unary")(timeout=BOUND_S)
            assert (await call.code(), call.time_remaining() > 10) == (grpc.StatusCode.UNAUTHENTICATED, True)
        await parts.listener.stop(0.0)
    assert parts.lane.in_flight == 0
    await parts.shard.aclose()


async def test_a_role_opens_its_methods_and_no_other_wherever_the_key_lives(guarded: Shards) -> None:
    async with grpc.aio.insecure_channel(guarded.app.listen["echo"]) as channel:
        stub = echo_pb2_grpc.EchoStub(channel)
        for key in guarded.keys:
            assert await code_of(stub.Unary(EchoRequest(key=key), metadata=READER, timeout=BOUND_S)) == "OK"
            wanted = EchoRequest(key=key, order="began")
            assert await code_of(stub.Misbehave(wanted, metadata=READER, timeout=BOUND_S)) == "PERMISSION_DENIED"
            assert await code_of(stub.Misbehave(wanted, metadata=ADMIN, timeout=BOUND_S)) == "OK"
            assert await code_of(stub.Hold(wanted, metadata=ADMIN, timeout=BOUND_S)) == "PERMISSION_DENIED"


async def test_the_handler_knows_its_client_also_where_the_call_was_forwarded(guarded: Shards) -> None:
    # What the client says of itself beside its token passes the shard that forwards, unread.
    lies = (("onelane-identity", "x"), ("onelane-forwarded-identity", write_identity(EVE).decode()))
    async with grpc.aio.insecure_channel(guarded.members[0].address) as channel:
        stub = echo_pb2_grpc.EchoStub(channel)
        for key in guarded.keys:
            call = stub.Misbehave(EchoRequest(key=key, order="identity"), metadata=(*ADMIN, *lies), timeout=BOUND_S)
            await call
            trailers = dict(await call.trailing_metadata() or ())
            assert trailers["x-identity"] == "ann admin jwt"
            assert "onelane-identity" not in str(trailers["x-metadata"]).split()


async def test_health_and_the_ring_stay_open_and_the_rest_of_the_runtime_is_closed(guarded: Shards) -> None:
    dialled: Any = onelane.dial(guarded.app.listen["echo"])
    async with dialled as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=BOUND_S)).status == 1
        topology: Any = topology_pb2_grpc.TopologyStub(channel)
        watch = topology.Watch(topology_pb2.WatchRequest(), timeout=BOUND_S)
        assert len((await watch.read()).members) == SHARDS
        watch.cancel()
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        lists = reflection.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=BOUND_S
        )
        siblings: Any = siblings_pb2_grpc.SiblingsStub(channel)
        closed = [
            topology.Status(topology_pb2.StatusRequest(), timeout=BOUND_S),
            lists.read(),
            siblings.Publish(siblings_pb2.PublishRequest(), timeout=BOUND_S),
        ]
        assert [await code_of(call) for call in closed] == ["UNAUTHENTICATED"] * 3
        publish = siblings.Publish(siblings_pb2.PublishRequest(), metadata=ADMIN, timeout=BOUND_S)
        assert await code_of(publish) == "PERMISSION_DENIED"


async def test_a_channel_that_knows_the_ring_reaches_the_owners(guarded: Shards) -> None:
    async with onelane.connect(guarded.app.listen["echo"]) as channel:
        stub = echo_pb2_grpc.EchoStub(channel)
        for key, member in zip(guarded.keys, guarded.members, strict=True):
            reply = await stub.Unary(EchoRequest(key=key), metadata=READER)
            assert reply.shard == member.name
            assert await code_of(stub.Unary(EchoRequest(key=key))) == "UNAUTHENTICATED"


async def test_the_app_s_own_code_reaches_every_shard(guarded: Shards) -> None:
    async with grpc.aio.insecure_channel(guarded.app.listen["echo"]) as channel:
        stub = echo_pb2_grpc.EchoStub(channel)

        async def ask(index: int, order: str) -> str:
            request = EchoRequest(key=guarded.keys[index], order=order)
            return str((await stub.Across(request, metadata=ADMIN, timeout=BOUND_S)).text)

        assert await ask(0, "each x") == " ".join(f"echo-{n}=echo-{n}" for n in range(SHARDS))
        await ask(1, "subscribe news")
        await ask(0, "publish news 1 at_once")
        assert await ask(1, "wait_heard news 1") == "echo-0:0"


async def test_refusals_are_counted_and_logged_and_a_flood_of_them_in_few_lines(guarded: Shards) -> None:
    async with grpc.aio.insecure_channel(guarded.members[0].address) as channel:
        stub = echo_pb2_grpc.EchoStub(channel)
        before = guarded.app.metric("onelane_refusals_total", onelane_reason="unauthenticated")
        lines = guarded.app.log.read_text().count("auth.refused")
        calls = [stub.Unary(EchoRequest(key=guarded.keys[0]), timeout=BOUND_S) for _ in range(300)]
        assert {await code_of(call) for call in calls} == {"UNAUTHENTICATED"}
        # A neighbour is answered.
        assert await code_of(stub.Unary(EchoRequest(key=guarded.keys[0]), metadata=READER, timeout=BOUND_S)) == "OK"
    after = guarded.app.metric("onelane_refusals_total", onelane_reason="unauthenticated")
    assert after - before == 300
    assert guarded.app.log.read_text().count("auth.refused") - lines < 150


@pytest.mark.parametrize("listener", ["native", "grpcio"])
async def test_a_certificate_opens_the_methods_of_its_roles(tmp_path: Path, listener: str) -> None:
    files = Files(tmp_path)
    files.issue("orders", "orders.example")
    files.issue("other", "other.example")
    toml = (
        echo(2 if listener == "native" else 1, f'listener = "{listener}"')
        + f"""
[apps.echo.tls]
cert = "{files.path("server.pem")}"
key = "{files.path("server.key")}"
client_ca = "{files.path("ca.pem")}"
[apps.echo.auth]
mtls = {{ "DNS=orders.example" = ["admin"] }}
methods = {{ "*" = ["admin"] }}
"""
    )
    with running(tmp_path, toml) as app:
        async with stock_secure(app.listen["echo"], files, cert="orders") as channel:
            for key in "abcd":
                call = echo_pb2_grpc.EchoStub(channel).Misbehave(
                    EchoRequest(key=key, order="identity"), timeout=BOUND_S
                )
                await call
                assert dict(await call.trailing_metadata() or ())["x-identity"] == "DNS=orders.example admin mtls"
        async with stock_secure(app.listen["echo"], files, cert="other") as channel:
            assert await code_of(echo_pb2_grpc.EchoStub(channel).Unary(EchoRequest(key="a"), timeout=BOUND_S)) == (
                "UNAUTHENTICATED"
            )


def test_an_app_without_the_table_has_no_gate_and_loads_no_library_for_it() -> None:
    parts, _ = wired()
    assert parts.access.gate is None
    assert parts.serving.arrive == parts.lane.arrive
    script = "import sys; from tests.shard.parts import wired; wired(); print('jwt' in sys.modules)"
    assert _output_of(script) == "False"


def _output_of(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=BOUND_S)
    return done.stdout.strip()


def test_without_the_extra_the_shard_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("jwt", "onelane.server.token_verifier", "onelane.shard.key_source"):
        monkeypatch.setitem(sys.modules, module, None)
    tokens = {"jwt": {"issuer": "i", "audience": "a", "keys_file": "k"}, "methods": {"*": ["admin"]}}
    with pytest.raises(BadConfig, match=r"(?s)apps\.echo\.auth\.jwt: .* install onelane\[auth\]"):
        wired(setup(auth=tokens))


async def test_a_pattern_that_names_no_method_is_refused_and_a_closed_method_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    methods = {"echo.v1.Echo/Unry": ["public"], "grpc.reflection.v1.ServerReflection/*": ["public"], "*": ["public"]}
    parts, _ = wired(setup(auth={"methods": methods}))
    with pytest.raises(
        onelane.BadService, match=r"apps\.echo\.auth\.methods: no service has \['echo\.v1\.Echo/Unry'\]"
    ):
        parts.services.load()
    parts, _ = wired(setup(auth={"methods": {"echo.v1.Echo/U*": ["public"]}}))
    parts.services.load()
    assert "auth.closed shard=echo-0 nobody may call echo.v1.Echo/Across" in caplog.text
