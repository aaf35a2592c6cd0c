"""Inline mode: the same app, n shards, one process and one loop, for tests and debuggers."""

import asyncio
import socket
import traceback
from collections.abc import Sequence

from onelane.cluster.control import Control, QueueControl
from onelane.shard import lifecycle
from onelane.shard.watchdog import Watchdog
from onelane.supervisor.launcher import RunningShard


class InlineLauncher:
    """See `onelane.supervisor.launcher.Launcher`: each shard is a task of this loop."""

    def __init__(self) -> None:
        self._watchdog = Watchdog(may_exit=False)

    async def launch(self, sockets: Sequence[socket.socket]) -> RunningShard:
        control, shard_control = QueueControl.pair()
        copies = [sock.dup() for sock in sockets]
        task = asyncio.get_running_loop().create_task(lifecycle.run(shard_control, self._watchdog, copies))
        task.add_done_callback(lambda task: _close_unused(task, copies))
        return _ShardTask(control, shard_control, task)


def _close_unused(task: "asyncio.Task[bool]", copies: Sequence[socket.socket]) -> None:
    """Close the sockets of a shard that has not started: in this process they would go on to listen."""
    if not task.cancelled() and (task.exception() is not None or not task.result()):
        for copy in copies:
            copy.close()


class _ShardTask:
    def __init__(self, control: Control, shard_control: Control, task: asyncio.Task[bool]) -> None:
        self.control = control
        self._task = task
        task.add_done_callback(lambda _: shard_control.close())

    async def wait(self) -> str:
        # Not `await`: a caller that is cancelled while it waits would cancel the shard.
        await asyncio.wait([self._task])
        if self._task.cancelled():
            return "killed"
        if (error := self._task.exception()) is not None:
            return "".join(traceback.format_exception(error))
        return "exit code 0" if self._task.result() else "exit code 1"

    def kill(self) -> None:
        self._task.cancel()

    def lacks_cpu(self) -> bool:
        return False

    def end_hung(self) -> None:
        """Never: its lane is the supervisor's own loop, which does not look while it is blocked."""
