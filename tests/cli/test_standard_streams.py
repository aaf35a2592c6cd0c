"""`onelane up` starts, serves and ends without a standard stream, and where nobody takes what it prints."""

import asyncio
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.ports import reserved
from tests.running_app import ROOT, echo, eventually, http_request

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("redirections", ["<&-", "2>&-", "<&- >&- 2>&-", ">/dev/full"])
async def test_an_app_runs_whatever_its_standard_streams_are(tmp_path: Path, redirections: str) -> None:
    def is_ready() -> bool:
        with suppress(OSError):
            return http_request(f"http://127.0.0.1:{port}/healthz") == (200, "1/1 shards ready\n")
        return process.poll() is not None

    with reserved() as port:
        file = tmp_path / "onelane.toml"
        file.write_text(f'admin = "127.0.0.1:{port}"\n{echo(1)}')
        process = start("up", str(file), "--app-dir", str(ROOT), redirections=redirections)
        try:
            await eventually(is_ready)
            process.terminate()
            assert await asyncio.to_thread(process.wait, 30) == 0
        finally:
            process.kill()


def start(*arguments: str, redirections: str) -> subprocess.Popen[bytes]:
    shell = ["bash", "-c", f'exec "$@" {redirections}', "bash"]
    return subprocess.Popen([*shell, sys.executable, "-m", "onelane", *arguments])
