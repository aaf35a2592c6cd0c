"""A shard that is blocked or stopped does not outlive its supervisor for long, and keeps no port from the next one."""

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from onelane.supervisor.launcher import ProcessLauncher
from onelane.supervisor.orphan_guard import OrphanGuard

from tests.bounds import BOUND_S


@pytest.fixture
def guard() -> Iterator[OrphanGuard]:
    orphan_guard = OrphanGuard(grace_s=0.1)
    yield orphan_guard
    orphan_guard.close()
    orphan_guard.wait()


@pytest.fixture
def shards() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes that do not end by themselves, of which one is stopped."""
    started = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(2)]
    started[0].send_signal(signal.SIGSTOP)
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_processes_that_outlive_the_supervisor_are_killed(
    guard: OrphanGuard, shards: list[subprocess.Popen[bytes]]
) -> None:
    for process in shards:
        guard.watch(process.pid)
    guard.close()
    assert [process.wait(BOUND_S) for process in shards] == [-signal.SIGKILL] * 2


def test_a_guard_waits_for_no_process_that_has_ended_and_touches_none_while_the_supervisor_lives(
    guard: OrphanGuard, shards: list[subprocess.Popen[bytes]]
) -> None:
    patient = OrphanGuard(grace_s=3600.0)
    for process in shards:
        patient.watch(process.pid)
        guard.watch(process.pid)
    shards[1].kill()
    shards[1].wait()
    assert shards[0].poll() is None
    shards[0].kill()
    shards[0].wait()
    patient.close()
    patient.wait()


async def test_a_shard_that_is_stopped_gives_its_port_up(guard: OrphanGuard) -> None:
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        port.listen()
        running: Any = await ProcessLauncher(orphan_guard=guard).launch([port])
        address = port.getsockname()
    running._process.send_signal(signal.SIGSTOP)
    guard.close()
    assert await asyncio.wait_for(running.wait(), BOUND_S) == "signal SIGKILL"
    running.control.close()
    with socket.socket() as port:
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port.bind(address)
