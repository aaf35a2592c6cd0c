"""Inline mode: the same app, n shards, one process and one loop, for tests and debuggers."""

import asyncio
import traceback

from onelane import life
from onelane.control import Control, QueueControl
from onelane.launcher import Running


class InlineLauncher:
    """See `onelane.launcher.Launcher`: each shard is a task of this loop."""

    async def launch(self) -> Running:
        ours, theirs = QueueControl.pair()
        return _InlineRunning(ours, theirs)


class _InlineRunning:
    def __init__(self, ours: Control, theirs: Control) -> None:
        self.control = ours
        self._theirs = theirs
        self._task = asyncio.get_running_loop().create_task(life.run(theirs))
        self._task.add_done_callback(lambda _: theirs.close())

    async def wait(self) -> str:
        try:
            started = await self._task
        except asyncio.CancelledError:
            return "killed"
        except Exception:
            return traceback.format_exc()
        return "exit code 0" if started else "exit code 1"

    def kill(self) -> None:
        self._task.cancel()
