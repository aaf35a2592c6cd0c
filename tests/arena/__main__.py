"""The arena on three machines of a cluster.

    python -m tests.arena [--for 60s] [--seed N] [--shards N] [--lease N] [--think 0.2s]

A machine is killed and another one added while players play, then one leaves and one comes, and so on.

The machines are network namespaces of this one, so it needs root; etcd and PostgreSQL run beside them. It says what
happens, and at the end whether anything was lost that the players had been told; exit code 0 only if nothing was. It
leaves no process, namespace or file behind.
"""

import asyncio
import signal
import sys
import time

import anyio
import click
import pytest
from rich.console import Console

from services.arena.drive import end_on_signal, read_seconds
from services.arena.game import Game
from tests.arena.course import Course, names
from tests.arena.machines import ADMIN_PORT, PORTS, MachineFault, Site, new_site, resolved

TABLES, LOUNGES = 4, 16
NAME = "machines.arena.test"
"""A host name that stands for all machines."""


async def play(site: Site, game: Game, seconds: float | None) -> bool:
    """The whole of it, on a network that has etcd and PostgreSQL. True if nothing is lost."""
    console, began = Console(), time.monotonic()

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - began:6.1f} s  {text}", highlight=False, soft_wrap=True, markup=False)

    course = Course(site, game, seconds, say)
    starting = anyio.CancelScope()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(end_on_signal, game.until, starting)
        say(f"etcd at {site.etcd_url}, PostgreSQL at {site.dsn}")
        with starting:
            await course.begin()
        if starting.cancelled_caught:
            raise click.ClickException("ended before the machines had joined")
        pages = [f"http://{address}:{ADMIN_PORT}/?token={site.token}" for address in course.addresses()]
        say(f"they are shown by the page of each, such as {pages[0]}")
        say(f"players play at {TABLES} tables and in {LOUNGES} lounges, with seed {game.seed}")
        with resolved(NAME, course.addresses):
            await game.play({app: f"{NAME}:{port}" for app, port in PORTS.items()}, course.run)
        say(f"the game is over; {names(course.machines)} leave")
        try:
            await course.end()
        except MachineFault as fault:
            game.fault = game.fault or str(fault)
        tasks.cancel_scope.cancel()
    game.tell_calls(console)
    game.tell_watchers(console)
    return game.tell_losses(console, killed="machines")


@click.command()
@click.option("--for", "seconds", callback=read_seconds, help="End after a time such as 60s, and the step under way.")
@click.option("--seed", default=1, show_default=True, help="Seed of all random choices.")
@click.option("--shards", type=click.IntRange(1, 8), help="Of each app on each machine, instead of the file's.")
@click.option("--lease", type=click.IntRange(2, 60), default=6, show_default=True, help="`lease_s` of the machines.")
@click.option("--think", callback=read_seconds, default="0s", help="What players wait before each call, such as 0.2s.")
def main(seconds: float | None, seed: int, shards: int | None, lease: int, think: float) -> None:
    """Run the arena on machines, and play in it."""
    game = Game(seed, tables=TABLES, lounges=LOUNGES, think_s=think)
    # As Ctrl-C, so that all is removed: until players play, and when they have.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with new_site(lease_s=lease, shards=shards) as site:
            try:
                is_good = asyncio.run(play(site, game, seconds))
            finally:
                signal.signal(signal.SIGTERM, signal.default_int_handler)
    except (pytest.skip.Exception, pytest.fail.Exception, MachineFault) as missing:
        raise click.ClickException(str(missing)) from None
    except BaseExceptionGroup as group:
        raise _first(group) from None
    sys.exit(0 if is_good else 1)


def _first(group: BaseExceptionGroup) -> BaseException:
    """The first error, as a sentence where it is a fault of a machine."""
    error = group.exceptions[0]
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return click.ClickException(str(error)) if isinstance(error, MachineFault) else error


if __name__ == "__main__":
    main()
