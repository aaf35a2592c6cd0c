"""A shard that is a task of its supervisor's loop; what it has in common with processes: test_supervisor.py."""

import asyncio

from onelane.supervisor.inline import InlineLauncher


async def test_a_caller_that_stops_waiting_for_the_end_of_a_shard_does_not_end_it() -> None:
    running = await InlineLauncher().launch(())
    waiting = asyncio.ensure_future(running.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    again = asyncio.ensure_future(running.wait())
    await asyncio.sleep(0)
    assert not again.done()
    running.kill()
    assert await again == "killed"
