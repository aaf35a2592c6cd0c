"""As process 1 of a container, onelane leaves no zombie, and behaves towards signals as it does elsewhere."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bounds import BOUND_S
from tests.running_app import echo, running

SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER: orphans among its descendants become children of a process as they do of process 1."""
AS_INIT = f"""
import ctypes, os, subprocess, sys, time
from onelane.cli.init_process import continue_in_child
ctypes.CDLL(None).prctl({SUBREAPER}, 1)
continue_in_child()
"""


def run_as_init(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", AS_INIT + program]
    return subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S, check=False)


def test_orphans_are_waited_for_and_the_child_keeps_the_exit_codes_of_its_own_children() -> None:
    run = run_as_init("""
shell = subprocess.run(["sh", "-c", "sleep 0.05 >/dev/null 2>&1 & echo $!"], capture_output=True, text=True)
orphan = int(shell.stdout)
while os.path.exists(f"/proc/{orphan}"):
    time.sleep(0.001)
sys.exit(subprocess.run(["sh", "-c", "exit 7"]).returncode)
""")
    assert (run.returncode, run.stderr) == (7, "")


def test_a_child_that_a_signal_has_ended_is_an_exit_code_as_in_a_shell() -> None:
    assert run_as_init("os.kill(os.getpid(), 9)").returncode == 128 + 9


@pytest.mark.slow
def test_an_app_in_a_container_of_its_own_stops_at_a_signal_to_process_1(tmp_path: Path) -> None:
    isolated = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*isolated, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this system lets this user make no namespace of processes")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {" ".join(isolated)} "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    with running(tmp_path, echo(1), python=str(python)) as cluster:
        assert cluster.shards()[0]["state"] == "ready"
        first = int(Path(f"/proc/{cluster.process.pid}/task/{cluster.process.pid}/children").read_text())
        os.kill(first, signal.SIGTERM)
        assert cluster.process.wait(BOUND_S) == 0
