"""`onelane plan` says what `onelane scale` then does."""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from onelane.cli.main import main

from tests.bounds import BOUND_S
from tests.echo.v1.echo_pb2 import EchoRequest
from tests.echo.v1.echo_pb2_grpc import EchoStub
from tests.running_app import echo, eventually, running

KEYS = [f"key {number}" for number in range(60)]


def planned(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["plan", "echo", *arguments])


@contextlib.contextmanager
def ports_in_a_row(number: int) -> Iterator[int]:
    """The first of so many ports in a row that nobody has, as `tests.ports.reserved`; below those that the system gives
    to clients."""
    for first in range(20_000 + os.getpid() % 5_000, 32_000):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + number):
                    sock = stack.enter_context(socket.socket())
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            yield first
            return
    raise AssertionError("no free ports")


@pytest.mark.slow
def test_the_owners_that_a_plan_names_are_those_that_scaling_makes(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("\n".join(KEYS) + "\n")
    # Of three shards that follow each other, whose ports the file fixes.
    with (
        ports_in_a_row(3) as own_port,
        running(tmp_path, echo(2, "show_keys = true", f"own_port = {own_port}")) as cluster,
    ):
        ask = ("--admin", cluster.admin, "--file", str(tmp_path / "onelane.toml"))
        from_file: Any = json.loads(planned("3", "--keys", str(tmp_path / "keys"), "--json", *ask).stdout)
        with grpc.insecure_channel(cluster.listen["echo"]) as channel:
            stub = EchoStub(channel)
            before = {key: stub.Unary(EchoRequest(key=key), timeout=BOUND_S).shard for key in KEYS}
            assert CliRunner().invoke(main, ["scale", "echo", "3", "--admin", cluster.admin]).exit_code == 0
            after = {key: stub.Unary(EchoRequest(key=key), timeout=BOUND_S).shard for key in KEYS}
        moved = [key.replace(" ", "%20") for key in KEYS if before[key] != after[key]]
        assert from_file["moved"] == moved
        counts = [(shard["keys_before"], shard["keys_after"]) for shard in from_file["shards"]]
        owners = [f"echo-{index}" for index in range(3)]
        assert counts == [(list(before.values()).count(name), list(after.values()).count(name)) for name in owners]
        # The shards tell them once a second.
        asyncio.run(eventually(lambda: "of hot keys: " in planned("2", *ask).stdout))
        assert "% of the ring moves; skew " in planned("2", *ask).stdout


def test_without_a_supervisor_a_file_of_keys_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("onelane.toml").write_text(echo(2).replace("127.0.0.1:0", "127.0.0.1:50051"))
    Path("keys").write_text("a\na\nb\n")
    ask = ("--admin", "127.0.0.1:1")
    outcome = json.loads(planned("4", "--keys", "keys", "--json", *ask).stdout)
    assert (outcome["keys"], len(outcome["shards"])) == (3, 4)
    assert outcome["moved_share"] == pytest.approx(0.5, abs=0.1)
    assert "nothing listens at 127.0.0.1:1" in planned("4", *ask).stderr
    assert planned("0", *ask).exit_code == 2
