"""Each example of services/examples runs, from its own file, and does what its first line says."""

import base64
import hashlib
import hmac
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme
from onelane.testing import Cluster

from services.examples.counter.v1 import counter_pb2, counter_pb2_grpc
from services.examples.jwt.v1 import jwt_pb2, jwt_pb2_grpc
from services.examples.mtls.v1 import mtls_pb2, mtls_pb2_grpc
from services.examples.offload.v1 import offload_pb2, offload_pb2_grpc
from services.examples.pubsub.v1 import pubsub_pb2, pubsub_pb2_grpc
from services.examples.settings.v1 import settings_pb2, settings_pb2_grpc
from services.examples.stream.v1 import stream_pb2, stream_pb2_grpc
from services.examples.timers.v1 import timers_pb2, timers_pb2_grpc
from services.examples.two_apps.v1 import shop_pb2, shop_pb2_grpc
from tests.running_app import ROOT, running

EXAMPLES = ROOT / "services" / "examples"
TESTS_ITSELF = {"testing"}
"""Its test stands beside it, as a user's would."""


def file_of(name: str) -> Path:
    return EXAMPLES / name / "onelane.toml"


def on_free_ports(name: str) -> str:
    """The TOML of an example, but for the port that it listens on."""
    return re.sub(r'listen = "127\.0\.0\.1:\d+"', 'listen = "127.0.0.1:0"', file_of(name).read_text())


def test_every_example_has_a_test_and_is_short() -> None:
    names = {folder.name for folder in EXAMPLES.iterdir() if (folder / "onelane.toml").exists()}
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")} | TESTS_ITSELF
    assert len(names) == 10
    assert names <= tested
    services = [path for name in names for path in (EXAMPLES / name).glob("*.py")]
    assert [path for path in services if len(path.read_text().splitlines()) >= 60] == []


def test_counter(tmp_path: Path) -> None:
    """By a stock grpcio client, over a real port."""
    with running(tmp_path, on_free_ports("counter")) as app, grpc.insecure_channel(app.listen["counter"]) as channel:
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


def token(secret: str, *, expires_at: float, algorithm: str = "HS256") -> str:
    parts = [json.dumps(part).encode() for part in ({"alg": algorithm}, {"sub": "ann", "exp": expires_at})]
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = base64.urlsafe_b64encode(hmac.digest(secret.encode(), signed, hashlib.sha256)).rstrip(b"=")
    return (signed + b"." + signature).decode()


async def test_jwt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JWT_SECRET", "sesame")
    later = time.time() + 60
    refused = [
        "none",
        "no.token",
        token("guessed", expires_at=later),
        token("sesame", expires_at=0),
        token("sesame", expires_at=later, algorithm="none"),
    ]
    async with Cluster(file_of("jwt")) as cluster:
        accounts = cluster.stub(jwt_pb2_grpc.AccountsStub)
        request = jwt_pb2.BalanceRequest(user="ann")
        good = (("authorization", f"Bearer {token('sesame', expires_at=later)}"),)
        assert (await accounts.Balance(request, metadata=good)).cents == 300
        for bad in refused:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await accounts.Balance(request, metadata=(("authorization", f"Bearer {bad}"),))
            assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED, bad
