"""One run: the clients of an app, a schedule, and what the history of it shows."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.chaos.clients import Clients, History
from tests.chaos.outcome import Outcome
from tests.chaos.planners import Planners
from tests.chaos.schedule import Disturber, Schedule
from tests.chaos.service import RUNS_FILE
from tests.chaos.watchers import Watchers
from tests.coroutine_stacks import ended
from tests.history.linearizability import check
from tests.running_app import RunningApp, running

KEYS = 24
LOG_LINES = 80
LONGEST_S = 600.0
"""Of a run: several times what the longest takes on a busy machine. A hang is told then."""
APP = """
[apps.{name}]
services = [{services}]
listen = "127.0.0.1:0"
shards = 2
max_late_s = 10
"""
STATE = """
[apps.kept.state]
folder = "{folder}"
patience_s = {patience_s}
"""
SHORT_PATIENCE_S = 0.3
"""Of a store that is locked for longer now and then, see `schedule`."""


@dataclass(frozen=True)
class Arena:
    """A running `onelane up` with two apps: `plain`, with state in memory, and `kept`, with durable state."""

    app: RunningApp
    folder: Path
    """Of the durable state."""
    runs: Path
    """The file of the runs of reminders."""


@contextmanager
def arena(folder: Path, *, patience_s: float = SHORT_PATIENCE_S) -> Iterator[Arena]:
    """patience_s: of the store, whose files the shards wait for as they start, too."""
    state = folder / "state"
    apps = [_app("plain", "Plain", "Feed"), _app("kept", "Kept", "KeptFeed", "Agenda")]
    runs = folder / "runs"
    with running(
        folder, "".join(apps) + STATE.format(folder=state, patience_s=patience_s), **{RUNS_FILE: str(runs)}
    ) as app:
        yield Arena(app, state, runs)


def _app(name: str, *services: str) -> str:
    return APP.format(name=name, services=", ".join(f'"tests.chaos.service:{service}"' for service in services))


class Party(Protocol):
    """Clients of one kind, and what they must have seen in the end."""

    def start(self) -> None: ...

    async def stop(self) -> None:
        """Wait for what is under way."""

    async def check(self) -> None:
        """Raise AssertionError where that is not so."""


@dataclass(frozen=True)
class Load:
    """How much the clients call."""

    clients: int = 8
    pause_s: float = 0.0
    """Of a client, after each call."""


async def run(
    arena: Arena, name: str, seed: int, schedule: Schedule, *, with_crashes: bool = False, load: Load | None = None
) -> Outcome:
    """Clients call an app all the while that a schedule goes on. with_crashes: calls may fail.

    Raises:
        AssertionError: the history is not linearizable, or something hangs; with all that is known of the run.
    """

    async def standing() -> list[str]:
        return await _circumstances(arena, name)

    work = _run(arena, name, seed, schedule, with_crashes=with_crashes, load=load or Load())
    return await ended(work, f"{name}, seed {seed}", within_s=LONGEST_S, circumstances=standing)


async def _run(arena: Arena, name: str, seed: int, schedule: Schedule, *, with_crashes: bool, load: Load) -> Outcome:
    keys = [f"{seed}-{number}" for number in range(KEYS)]
    is_durable, target = name == "kept", arena.app.listen[name]
    disturber = Disturber(arena.app, name, keys, seed, durable=arena.folder if is_durable else None)
    history = History()
    clients = Clients(keys, seed, history, pause_s=load.pause_s)
    # With a crash a repeat without an id may be a second change.
    own = [shard["address"] for shard in (await asyncio.to_thread(arena.app.shards, name))[:2]]
    _dial(clients, load.clients, target, own, retrying=not with_crashes, with_id=is_durable)
    watchers = Watchers(keys, target, keeps_counts=is_durable or not with_crashes)
    planners = Planners(keys, seed, target, arena.runs) if is_durable else None
    parties: list[Party] = [clients, watchers, *([planners] if planners else [])]
    for party in parties:
        party.start()
    outcome = Outcome(name, seed, history, disturber.record, watchers, planners)
    try:
        await _carry_out(schedule, disturber, parties)
        await asyncio.to_thread(check, [*history.operations, *disturber.record.losses])
        for party in parties:
            await party.check()
    except AssertionError as error:
        raise AssertionError("\n".join([str(error), *outcome.lines(), *await _circumstances(arena, name)])) from error
    finally:
        await watchers.close()
    return outcome


async def _carry_out(schedule: Schedule, disturber: Disturber, parties: Sequence[Party]) -> None:
    try:
        await schedule(disturber)
    except TimeoutError as error:
        raise AssertionError("it hangs") from error
    finally:
        for party in parties:
            await party.stop()


async def _circumstances(arena: Arena, name: str) -> list[str]:
    """For the search of a fault."""
    status = (await asyncio.to_thread(arena.app.status))["apps"][name]
    log = await asyncio.to_thread(arena.app.log.read_text)
    return [f"change: {status['change']}", *map(str, status["shards"]), *log.splitlines()[-LOG_LINES:]]


def _dial(clients: Clients, count: int, shared: str, own: list[str], *, retrying: bool, with_id: bool) -> None:
    """Four kinds of clients: of grpcio at the shared port, at a shard's own, and with ids; and ours."""
    for number in range(count):
        match number % 4:
            case 0:
                clients.add_stock("stock", shared, retrying=retrying)
            case 1:
                clients.add_stock("stock at its own", own[number // 4 % 2], retrying=retrying)
            case 2:
                clients.add_ours(shared)
            case 3:
                clients.add_stock("stock with ids", shared, retrying=retrying and not with_id, with_id=with_id)
