"""Each example of services/examples runs, from its own file, and does what its first line says."""

import json
import math
import re
import shlex
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme
from google.protobuf import descriptor_pool, json_format, message_factory
from onelane.testing import Cluster

from services.examples.counter.v1 import counter_pb2, counter_pb2_grpc
from services.examples.jwt.make_token import token_of
from services.examples.jwt.v1 import jwt_pb2, jwt_pb2_grpc
from services.examples.mtls.v1 import mtls_pb2, mtls_pb2_grpc
from services.examples.offload.v1 import offload_pb2, offload_pb2_grpc
from services.examples.pubsub.v1 import pubsub_pb2, pubsub_pb2_grpc
from services.examples.settings.v1 import settings_pb2, settings_pb2_grpc
from services.examples.stream.service import BACKLOG, Ticker
from services.examples.stream.v1 import stream_pb2, stream_pb2_grpc
from services.examples.timers.v1 import timers_pb2, timers_pb2_grpc
from services.examples.two_apps.v1 import shop_pb2, shop_pb2_grpc
from tests.bounds import BOUND_S
from tests.running_app import ROOT, running, running_command

EXAMPLES = ROOT / "services" / "examples"
TESTS_ITSELF = {"testing"}
"""Its test stands beside it, as a user's would."""
PAGE = (EXAMPLES / "README.md").read_text()
SECRET = "sesame"


def file_of(name: str) -> Path:
    return EXAMPLES / name / "onelane.toml"


def first_app(name: str) -> str:
    match = re.search(r"^\[apps\.([\w-]+)\]", file_of(name).read_text(), re.MULTILINE)
    assert match is not None
    return match[1]


def on_free_ports(name: str) -> str:
    """The TOML of an example, but for the port that it listens on."""
    return re.sub(r'listen = "127\.0\.0\.1:\d+"', 'listen = "127.0.0.1:0"', file_of(name).read_text())


NAMES = sorted(folder.name for folder in EXAMPLES.iterdir() if (folder / "onelane.toml").exists())


def test_every_example_has_a_test_and_is_short() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")} | TESTS_ITSELF
    assert len(NAMES) == 10
    assert set(NAMES) <= tested
    services = [path for name in NAMES for path in (EXAMPLES / name).glob("*.py") if path.name != "test_service.py"]
    assert [path for path in services if len(path.read_text().splitlines()) >= 60] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_page_says_how_to_run_it(name: str) -> None:
    (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| [{name}]("))
    link = re.findall(r"\]\((.*?)\)", row)[0]
    assert (EXAMPLES / link).exists()
    assert name in TESTS_ITSELF or f".venv/bin/onelane up services/examples/{name}/onelane.toml`" in row


class PageCall:
    """A call that the page shows as a command of grpcurl, sent by stock grpcio instead."""

    PATTERN = re.compile(r"^\$ grpcurl (.+) 127\.0\.0\.1:50051 (examples\.(\w+)\.v1\.\w+)/(\w+)\n(.*)$", re.MULTILINE)

    def __init__(self, command: re.Match[str], certificates: Path) -> None:
        options, service, self.example, method, response = command.groups()
        self.method = f"/{service}/{method}"
        self.expected = json.loads(response)
        self._words = shlex.split(options)
        self._folder = certificates
        descriptor = descriptor_pool.Default().FindServiceByName(service).methods_by_name[method]
        self._streams = descriptor.server_streaming
        self._request_type = message_factory.GetMessageClass(descriptor.input_type)
        self._response_type = message_factory.GetMessageClass(descriptor.output_type)

    def option(self, name: str) -> str:
        return self._words[self._words.index(name) + 1] if name in self._words else ""

    def channel(self, address: str) -> grpc.Channel:
        if "-plaintext" in self._words:
            return grpc.insecure_channel(address)
        root, key, chain = ((self._folder / self.option(name)).read_bytes() for name in ("-cacert", "-key", "-cert"))
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(root, key, chain))

    def metadata(self) -> list[tuple[str, str]]:
        token = token_of({"sub": "ann", "exp": time.time() + 60}, SECRET.encode())
        name, colon, text = self.option("-H").replace("$TOKEN", token).partition(": ")
        return [(name, text)] if colon else []

    def start(self, channel: Any) -> Any:
        """The responses, as an iterator; a unary one has come by then, and a stream has sent its headers."""
        open_call = channel.unary_stream if self._streams else channel.unary_unary
        send = open_call(self.method, self._request_type.SerializeToString, self._response_type.FromString)
        request = json_format.Parse(self.option("-d") or "{}", self._request_type())
        response = send(request, timeout=BOUND_S, metadata=self.metadata())
        if self._streams:
            response.initial_metadata()
        return response if self._streams else iter([response])


def test_the_calls_of_the_page_get_the_responses_of_the_page(tmp_path: Path) -> None:
    """Of all examples at once, in one process: the tables of their files in one file, with one shard each."""
    subprocess.run([sys.executable, "-m", "trustme", "-q", "-d", tmp_path, "-i", "localhost", "127.0.0.1"], check=True)
    calls = [PageCall(command, tmp_path) for command in PageCall.PATTERN.finditer(PAGE)]
    assert {call.example for call in calls} == set(NAMES) - TESTS_ITSELF
    toml = re.sub(r"shards = \d+", "shards = 1", "\n".join(map(on_free_ports, NAMES)))
    environment = {"JWT_SECRET": SECRET, "NOTES_DB": str(tmp_path / "notes.db")}
    with running(tmp_path, toml, "--inline", **environment) as app, ExitStack() as channels:
        addresses = {name: app.listen[first_app(name)] for name in NAMES}
        responses = [
            (call, call.start(channels.enter_context(call.channel(addresses[call.example])))) for call in calls
        ]
        for call, stream in responses:
            assert (call.method, json_format.MessageToDict(next(stream))) == (call.method, call.expected)


def test_counter(tmp_path: Path) -> None:
    """By the command of the page, from the root of the checkout; the environment has other ports than the file."""
    ports = {"ONELANE_ADMIN": "127.0.0.1:0", "ONELANE_APPS__COUNTER__LISTEN": "127.0.0.1:0"}
    command = ("up", "services/examples/counter/onelane.toml")
    with (
        running_command(*command, cwd=ROOT, log=tmp_path / "log", **ports) as app,
        grpc.insecure_channel(app.listen["counter"]) as channel,
    ):
        counter = counter_pb2_grpc.CounterStub(channel)
        totals = [counter.Add(counter_pb2.AddRequest(name=name, amount=2)).total for name in ("a", "b", "a")]
    assert totals == [2, 2, 4]


async def test_stream() -> None:
    async with Cluster(file_of("stream")) as cluster:
        ticker = cluster.stub(stream_pb2_grpc.TickerStub)
        await ticker.Quote(stream_pb2.Price(symbol="A", price=1.0))
        prices: Any = ticker.Watch(stream_pb2.WatchRequest(symbol="A"))
        assert (await prices.read()).price == 1.0
        assert (await ticker.Quote(stream_pb2.Price(symbol="A", price=2.0))).watchers == 1
        assert (await ticker.Quote(stream_pb2.Price(symbol="B", price=9.0))).watchers == 0
        assert (await prices.read()).price == 2.0
        prices.cancel()


async def test_stream_ends_for_a_client_that_is_too_slow() -> None:
    async with Cluster(file_of("stream")) as cluster:
        prices: Any = cluster.stub(stream_pb2_grpc.TickerStub).Watch(stream_pb2.WatchRequest(symbol="A"))
        await prices.initial_metadata()
        ticker = cluster.service(Ticker, shard=cluster.owner_of("A"))
        # Without a pause, so that the stream sends none of them meanwhile.
        watchers = [(await ticker.Quote(stream_pb2.Price(symbol="A"), None)).watchers for _ in range(BACKLOG + 1)]
        assert watchers == [1] * BACKLOG + [0]
        assert [await prices.read() for _ in range(BACKLOG)] == [stream_pb2.Price(symbol="A")] * BACKLOG
        assert await prices.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_two_apps() -> None:
    async with Cluster(file_of("two_apps")) as cluster:
        shop = cluster.stub(shop_pb2_grpc.ShopStub, app="shop")
        bought = [await shop.Buy(shop_pb2.BuyRequest(customer=name, item="lamp")) for name in ("ann", "ben", "cat")]
        assert [reply.left for reply in bought] == [2, 1, 0]
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await shop.Buy(shop_pb2.BuyRequest(customer="dan", item="lamp"))
    assert (raised.value.code(), raised.value.details()) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "lamp is sold out",
    )


async def test_offload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTES_DB", str(tmp_path / "notes.db"))
    for written in (True, False):  # The second time from the file alone.
        async with Cluster(file_of("offload")) as cluster:
            notes = cluster.stub(offload_pb2_grpc.NotesStub)
            if written:
                await notes.Write(offload_pb2.Note(title="shopping", text="bread"))
            assert (await notes.Read(offload_pb2.ReadRequest(title="shopping"))).text == "bread"
            with pytest.raises(grpc.aio.AioRpcError, match="no note 'dreams'"):
                await notes.Read(offload_pb2.ReadRequest(title="dreams"))


async def test_pubsub() -> None:
    async with Cluster(file_of("pubsub")) as cluster:
        listening: list[Any] = [
            cluster.stub(pubsub_pb2_grpc.ChatStub, shard=shard).Listen(pubsub_pb2.ListenRequest()) for shard in (0, 1)
        ]
        for lines in listening:
            await lines.initial_metadata()
        await cluster.stub(pubsub_pb2_grpc.ChatStub).Say(pubsub_pb2.Line(author="ann", text="hi"))
        assert [(await lines.read()).text for lines in listening] == ["hi", "hi"]
        for lines in listening:
            lines.cancel()


async def test_timers() -> None:
    async with Cluster(file_of("timers")) as cluster:
        reminders = cluster.stub(timers_pb2_grpc.RemindersStub)
        await reminders.Set(timers_pb2.SetRequest(user="ann", after_s=60, text="tea"))
        assert (await reminders.List(timers_pb2.ListRequest(user="ann"))).waiting == 1
        await cluster.advance(60)
        after = await reminders.List(timers_pb2.ListRequest(user="ann"))
        for seconds in (-1.0, math.nan):
            with pytest.raises(grpc.aio.AioRpcError, match="after_s: expected 0 to 86400"):
                await reminders.Set(timers_pb2.SetRequest(user="ann", after_s=seconds))
    assert (list(after.due), after.waiting) == (["tea"], 0)


def test_mtls(tmp_path: Path) -> None:
    ca = trustme.CA()
    server, client = ca.issue_cert("127.0.0.1"), ca.issue_cert("ann.example.org")
    server.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    server.private_key_pem.write_to_path(tmp_path / "server.key")
    ca.cert_pem.write_to_path(tmp_path / "client.pem")
    root = ca.cert_pem.bytes()
    with running(tmp_path, on_free_ports("mtls")) as app:
        known = grpc.ssl_channel_credentials(root, client.private_key_pem.bytes(), client.cert_chain_pems[0].bytes())
        with grpc.secure_channel(app.listen["mtls"], known) as channel:
            assert mtls_pb2_grpc.VaultStub(channel).WhoAmI(mtls_pb2.WhoAmIRequest()).name == "ann.example.org"
        with (
            grpc.secure_channel(app.listen["mtls"], grpc.ssl_channel_credentials(root)) as channel,
            pytest.raises(grpc.RpcError),
        ):
            mtls_pb2_grpc.VaultStub(channel).WhoAmI(mtls_pb2.WhoAmIRequest())


def reload(app_admin: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onelane", "reload", app_admin]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_settings(tmp_path: Path) -> None:
    with running(tmp_path, on_free_ports("settings")) as app, grpc.insecure_channel(app.listen["settings"]) as channel:
        greeter = settings_pb2_grpc.GreeterStub(channel)
        file = tmp_path / "onelane.toml"
        assert greeter.Hello(settings_pb2.HelloRequest(name="ann")).text == "hello ann"
        before = file.read_text()
        file.write_text(before.replace('greeting = "hello"', 'greeting = "good day"'))
        assert reload(app.admin).returncode == 0
        assert greeter.Hello(settings_pb2.HelloRequest(name="ann")).text == "good day ann"
        file.write_text(before.replace("times = 1", "times = 9"))
        refused = reload(app.admin)
        assert refused.returncode != 0
        assert "expected 1 to 3, seen 9" in refused.stderr
        assert greeter.Hello(settings_pb2.HelloRequest(name="ann")).text == "good day ann"


async def test_jwt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    claims = {"sub": "ann", "exp": time.time() + 60}
    invalid_tokens = [
        "none",
        "no.token",
        token_of(claims, b"guessed"),
        token_of(claims | {"exp": 0}, SECRET.encode()),
        token_of(claims, SECRET.encode(), algorithm="none"),
    ]
    async with Cluster(file_of("jwt")) as cluster:
        accounts = cluster.stub(jwt_pb2_grpc.AccountsStub)

        async def balance(user: str, token: str) -> int | grpc.StatusCode:
            request = jwt_pb2.BalanceRequest(user=user)
            try:
                return (await accounts.Balance(request, metadata=(("authorization", f"Bearer {token}"),))).cents
            except grpc.aio.AioRpcError as error:
                return error.code()

        valid_token = token_of(claims, SECRET.encode())
        assert await balance("ann", valid_token) == 300
        assert await balance("ben", valid_token) is grpc.StatusCode.PERMISSION_DENIED
        assert [await balance("ann", token) for token in invalid_tokens] == [grpc.StatusCode.UNAUTHENTICATED] * 5
