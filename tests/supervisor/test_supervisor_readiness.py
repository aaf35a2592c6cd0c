"""`/readyz` of a machine of a cluster: it is ready once shards of its own own keys."""

import asyncio
import os
import signal
import urllib.error
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import ports
from tests.etcd import EtcdServer, etcd
from tests.running_app import echo, eventually, http_request, running
from tests.supervisor.cluster_variables import environment_of, settings_of

pytestmark = pytest.mark.slow
LEASE_S = 60
"""The machine that coordinates is stopped for a part of it."""


@pytest.fixture
def server() -> Iterator[EtcdServer]:
    with etcd() as server:
        yield server


def readiness(admin: str) -> tuple[int, str]:
    try:
        return http_request(f"http://{admin}/readyz")
    except urllib.error.URLError:
        return 0, "it does not listen yet"


async def test_a_machine_is_ready_once_its_shards_own_keys_not_once_they_run(
    server: EtcdServer, tmp_path: Path
) -> None:
    environments = {name: environment_of(settings_of(server, machine=name, lease_s=LEASE_S)) for name in "ab"}
    for name in environments:
        (tmp_path / name).mkdir()
    with ExitStack() as stack, ports.reserved() as port, running(tmp_path / "a", echo(1), **environments["a"]) as a:
        admin = f"127.0.0.1:{port}"
        assert readiness(a.admin) == (200, "ready\n")
        # It coordinates, so nobody places a shard meanwhile.
        os.kill(a.process.pid, signal.SIGSTOP)
        try:
            b = running(tmp_path / "b", echo(1), ONELANE_ADMIN=admin, **environments["b"])
            starting = asyncio.ensure_future(asyncio.to_thread(stack.enter_context, b))
            waits = (503, "no key of echo belongs to this machine yet\n")
            await eventually(lambda: readiness(admin) == waits)
            assert not starting.done()
        finally:
            os.kill(a.process.pid, signal.SIGCONT)
        await starting
        assert readiness(admin) == (200, "ready\n")
