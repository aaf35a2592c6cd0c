"""What keeps a shard from starting is one sentence with its place in the file, the same at a start and at a check."""

import asyncio
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme
from onelane.cluster.control import QueueControl
from onelane.shard.lifecycle import run, try_out
from onelane.shard.watchdog import Watchdog
from onelane.testing.listener import NET
from onelane.v1 import control_pb2

from tests.echo.service import Echo
from tests.running_app import eventually
from tests.shard.parts import setup

HERE = "tests.faulty_services"
ECHO = "tests.echo.service:Echo"
ECHO_METHOD = "echo.v1.Echo/Unary"
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "module missing": ({"services": ("tests.nowhere:X",)}, "services: tests.nowhere:X: no module 'tests.nowhere'"),
    "class missing": ({"services": ("tests.echo.service:Ecko",)}, "services: tests.echo.service:Ecko: tests.echo"),
    "not a servicer": ({"services": ("tests.running_app:RunningApp",)}, "services: tests.running_app:RunningApp: deri"),
    "module raises": (
        {"services": ("tests.faulty_module:X",)},
        "services: tests.faulty_module:X: NameError: name 'DATABASE' is not defined",
    ),
    "constructor's arguments": (
        {"services": (f"{HERE}:AsksForMore",)},
        f"services: {HERE}:AsksForMore: its constructor takes (shard: onelane.shard.shard.Shard, database: str)",
    ),
    "constructor raises": (
        {"services": ("tests.broken:Broken",)},
        "services: tests.broken:Broken: RuntimeError: this service cannot be made",
    ),
    "constructor exits": (
        {"services": (f"{HERE}:Leaves",)},
        f"services: {HERE}:Leaves: SystemExit: set DATABASE_URL first",
    ),
    "stub of an unknown app": (
        {"services": (f"{HERE}:CallsNobody",)},
        f"services: {HERE}:CallsNobody: stub CallsNobody.__init__.<locals>.<lambda>: no app or peer is called 'nobody'",
    ),
    "offload out of range": (
        {"services": (f"{HERE}:OffloadsBadly",)},
        f"services: {HERE}:OffloadsBadly: ValueError: offload cache: expected pool and capacity of 1 or more",
    ),
    "method without a key": (
        {"services": ("tests.greeter.service:Greeter",)},
        "services: tests.greeter.service:Greeter: greeter.v1.Greeter/Everyone: has no key",
    ),
    "two services of one name": (
        {"services": (ECHO, "tests.shard.test_services:Twin")},
        "services: tests.shard.test_services:Twin: echo.v1.Echo/Across is served already by another service",
    ),
    "key field missing": (
        {"keys": {ECHO_METHOD: "kee"}},
        f"services: {ECHO}: {ECHO_METHOD}: its key 'kee' in the table keys: echo.v1.EchoRequest has no field 'kee'",
    ),
    "key of no method": (
        {"keys": {"echo.v1.Echo/Unray": "key"}},
        f"keys: no service has ['echo.v1.Echo/Unray']; did you mean '{ECHO_METHOD}'?",
    ),
    "turns of no method": (
        {"turns": {"echo.v1.Ecko/*": "FREE"}},
        "turns: no service has ['echo.v1.Ecko/*']; did you mean 'echo.v1.Echo/*'?",
    ),
    "settings out of range": (
        {"config_type": "tests.echo.settings:EchoSettings", "config": {"limit": 0, "limmit": 2}},
        "config: limit: Input should be greater than or equal to 1, seen 0",
    ),
    "settings not frozen": (
        {"config_type": "tests.echo.settings:NotFrozen"},
        "config_type: tests.echo.settings:NotFrozen is <class 'tests.echo.settings.NotFrozen'>, expected a frozen",
    ),
    "settings' module raises": (
        {"config_type": "tests.faulty_module:X"},
        "config_type: tests.faulty_module:X: NameError: name 'DATABASE' is not defined",
    ),
    "settings raise": (
        {"config_type": "tests.shard.test_lifecycle_faults:Refusing"},
        "config: tests.shard.test_lifecycle_faults:Refusing has raised RuntimeError: not on a Friday",
    ),
    "unknown membership": (
        {"membership": "zookeeper"},
        "membership: onelane.memberships: 'zookeeper' is not installed; installed are ['static', 'supervisor']",
    ),
    "unknown listener": ({"listener": "nginx"}, "listener: onelane.listeners: 'nginx' is not installed"),
    "interceptor missing": (
        {"interceptors": ("tests.interceptors:Nothing",)},
        "interceptors: tests.interceptors:Nothing is <class 'tests.interceptors.Nothing'>, expected a class of",
    ),
    "interceptor raises": (
        {"interceptors": ("tests.shard.test_lifecycle_faults:make_interceptor",)},
        "interceptors: tests.shard.test_lifecycle_faults:make_interceptor: KeyError: 'SECRET'",
    ),
    "certificate missing": (
        {"tls": {"cert": "{tmp}/none.pem", "key": "{tmp}/key.pem"}},
        "tls: cert: {tmp}/none.pem cannot be read: No such file or directory",
    ),
    "key of another certificate": (
        {"tls": {"cert": "{tmp}/cert.pem", "key": "{tmp}/other-key.pem"}},
        "tls: key: {tmp}/other-key.pem is not the key of the certificate in {tmp}/cert.pem",
    ),
    "encrypted key": (
        {"tls": {"cert": "{tmp}/cert.pem", "key": "{tmp}/encrypted-key.pem"}},
        "tls: key: {tmp}/encrypted-key.pem is encrypted, expected a key without a passphrase",
    ),
    "certificate not PEM": (
        {"tls": {"cert": "{tmp}/text.pem", "key": "{tmp}/key.pem"}},
        "tls: cert: {tmp}/text.pem has no certificate in PEM form",
    ),
    "authorities not PEM": (
        {"tls": {"cert": "{tmp}/cert.pem", "key": "{tmp}/key.pem", "client_ca": "{tmp}/text.pem"}},
        "tls: client_ca: {tmp}/text.pem has no certificate in PEM form",
    ),
}


def make_interceptor() -> None:
    raise KeyError("SECRET")


def _refuse() -> int:
    raise RuntimeError("not on a Friday")


@dataclass(frozen=True)
class Refusing:
    limit: int = field(default_factory=_refuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    folder = tmp_path_factory.mktemp("pem")
    cert, other = trustme.CA().issue_cert("localhost"), trustme.CA().issue_cert("localhost")
    cert.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    cert.private_key_pem.write_to_path(str(folder / "key.pem"))
    other.private_key_pem.write_to_path(str(folder / "other-key.pem"))
    key = load_pem_private_key(cert.private_key_pem.bytes(), None)
    encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"x"))
    (folder / "encrypted-key.pem").write_bytes(encrypted)
    (folder / "text.pem").write_text("no certificate")
    return folder


async def reason_of(described: control_pb2.Setup, *, is_check: bool) -> str:
    """Why a shard does not start; "" where it would."""
    supervisor_end, shard_end = QueueControl.pair()
    await supervisor_end.send(control_pb2.ToShard(setup=described))
    work: Any = try_out(shard_end, whole_process=False) if is_check else run(shard_end, Watchdog(may_exit=False))
    # A task of its own, so that what is bound to the shard stays in its context.
    await asyncio.create_task(work)
    message: Any = await supervisor_end.receive()
    reason: str = message.failed.reason
    return reason


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_is_the_same_sentence_at_a_start_and_at_a_check(folder: Path, fault: str) -> None:
    settings, sentence = FAULTS[fault]
    paths = {name: path.replace("{tmp}", str(folder)) for name, path in settings.get("tls", {}).items()}
    # A listener in memory, unless the fault is of the listener.
    described = setup(folder, **{"listener": "memory"} | settings | ({"tls": paths} if paths else {}))
    at_start = await reason_of(described, is_check=False)
    assert at_start.startswith("apps.echo." + sentence.replace("{tmp}", str(folder)))
    assert await reason_of(described, is_check=True) == at_start
    assert NET.listeners == {}


async def test_a_check_opens_no_resource_of_a_worker_thread(folder: Path) -> None:
    described = setup(folder, services=(f"{HERE}:OpensNothing",), listener="memory")
    assert await reason_of(described, is_check=True) == ""
    assert "no database here" in await reason_of(described, is_check=False)


class StopsSaying(Echo):
    """Starts, and says when it is stopped."""

    stopped = 0

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        type(self).stopped += 1


async def test_a_shard_that_cannot_listen_stops_its_services_and_ends_their_threads(folder: Path) -> None:
    """Inline: each failed start left its threads, and the supervisor tries again and again."""
    before = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        described = setup(folder, services=(f"{__name__}:StopsSaying",), listen=listen)
        assert "is taken by" in await reason_of(described, is_check=False)
    assert StopsSaying.stopped == 1
    await eventually(lambda: not any(thread.name == "offload-db" for thread in set(threading.enumerate()) - before))
