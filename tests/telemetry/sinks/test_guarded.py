"""A sink that fails loses what it was given, and nothing else."""

import os
import signal
from pathlib import Path

import pytest

from tests.running_app import echo, eventually, running


@pytest.mark.slow
async def test_a_sink_that_raises_at_everything_ends_no_shard_and_no_supervisor(tmp_path: Path) -> None:
    site = tmp_path / "site"
    metadata = site / "raising-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: raising\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[onelane.sinks]\nraising = raising:Raising\n")
    (site / "raising.py").write_text(
        "class Raising:\n"
        "    def __init__(self, environment): pass\n"
        "    def fail(self, *_): raise RuntimeError('a fault of the plugin')\n"
        "    spans = logs = points = losses = close = fail\n"
    )
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    toml = 'sinks = ["raising"]\n' + echo(1)
    with running(tmp_path, toml, PYTHONPATH=path, OTEL_TRACES_SAMPLER="always_on") as cluster:
        await eventually(lambda: "a fault of the plugin" in cluster.log.read_text())
        assert cluster.metric("onelane_restarts_total") == 0
        assert cluster.shards()[0]["state"] == "ready"
        assert cluster.log.read_text().count("sink.failed") == 1
        assert cluster.stop(by=signal.SIGTERM) == 0
