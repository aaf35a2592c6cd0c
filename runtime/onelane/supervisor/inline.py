"""Inline mode: the same app, n shards, one process and one loop, for tests and debuggers."""

import asyncio
import socket
import traceback
from collections.abc import Sequence

from onelane.cluster.control import Control, QueueControl
from onelane.shard import lifecycle
from onelane.shard.watchdog import Watchdog
from onelane.supervisor.launcher import Running


class InlineLauncher:
    """See `onelane.supervisor.launcher.Launcher`: each shard is a task of this loop."""

    def __init__(self) -> None:
        self._watchdog = Watchdog(may_exit=False)

    async def launch(self, sockets: Sequence[socket.socket]) -> Running:
        ours, theirs = QueueControl.pair()
        return _InlineRunning(ours, theirs, self._watchdog, [sock.dup() for sock in sockets])


class _InlineRunning:
    def __init__(self, ours: Control, theirs: Control, watchdog: Watchdog, sockets: Sequence[socket.socket]) -> None:
        self.control = ours
        self._theirs = theirs
        self._task = asyncio.get_running_loop().create_task(lifecycle.run(theirs, watchdog, sockets))
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
