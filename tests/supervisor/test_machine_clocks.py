"""Machines whose wall clocks are hours apart, each an `onelane up` at a real etcd.

Leases and fences do not go by these clocks; reminders, remembered answers and assertions of identity do."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.etcd import etcd
from tests.running_app import ROOT, echo
from tests.supervisor.cluster_variables import environment_of
from tests.supervisor.machines_up import Machines, epoch_of, served_by
from tests.supervisor.wall_clock import environment_of as wall_clock

DAY_S = 86_400


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    with etcd() as server:
        yield Machines(server, tmp_path)


@pytest.mark.parametrize(("ahead_s", "seen"), [(-DAY_S, "behind"), (DAY_S, "ahead of")])
async def test_a_machine_whose_clock_is_a_day_off_does_not_join_and_is_told_so(
    machines: Machines, tmp_path: Path, ahead_s: int, seen: str
) -> None:
    with machines.up("a") as a:
        epoch = epoch_of(a)
        variables = environment_of(machines.settings_of("b")) | wall_clock(ahead_s)
        (tmp_path / "onelane.toml").write_text(f'admin = "127.0.0.1:0"\n{echo(1)}')
        command = [sys.executable, "-m", "onelane", "up", str(tmp_path / "onelane.toml"), "--app-dir", str(ROOT)]
        run = partial(subprocess.run, command, env=os.environ | variables, capture_output=True, text=True)
        ended = await asyncio.to_thread(run)
        assert ended.returncode != 0
        expected = (
            rf"clocks of two machines are too far apart: that of 'b' is 86[34]\d\d s {seen} etcd's and that of 'a'"
        )
        assert "Traceback" not in ended.stderr
        assert re.search(expected, ended.stderr), ended.stderr
        assert "set the wrong one, as by NTP" in ended.stderr
        assert set((await served_by(a)).values()) == {"a/echo-0"}
        assert epoch_of(a) == epoch


async def test_a_machine_that_starts_with_a_clock_of_yesterday_goes_on_with_the_epochs_of_its_cluster(
    machines: Machines,
) -> None:
    """The first epoch is a machine's clock, all others are etcd's: clients never see one that is older."""
    with machines.up("a") as a:
        before = epoch_of(a)
    with machines.up_with("a", echo(1), **wall_clock(-DAY_S)) as a:
        assert set((await served_by(a)).values()) == {"a/echo-0"}
        assert epoch_of(a) >= before
        assert re.search(r"machine.clock_differs name=a ahead_of_etcd_s=-86[34]\d\d ", a.log.read_text())
