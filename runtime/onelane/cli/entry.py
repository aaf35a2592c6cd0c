"""The program `onelane`: starts the process that forks shards first of all, where the command runs shards, and then the
command line. So the imports of both, a third of a second each, are done at the same time."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from onelane.cli import init_process, standard_streams
from onelane.secret_files import without_secrets
from onelane.supervisor import descriptors, server_process

RUNS_SHARDS = ("up", "serve")
FORKS_NOTHING = ("--inline", "--help")


def main() -> None:
    """Run the command of this process's arguments."""
    try:
        if forks_shards(sys.argv[1:]):
            _start_fork_server()
        from onelane.cli.main import main as command_line

        command_line()
    finally:
        # The command has failed before it needed it.
        if (unused := server_process.take_early()) is not None:
            unused.kill()


def forks_shards(arguments: Sequence[str]) -> bool:
    """Whether a command line, right or wrong, is one that would fork shards."""
    return arguments[:1] != [] and arguments[0] in RUNS_SHARDS and not set(FORKS_NOTHING) & set(arguments)


def _start_fork_server() -> None:
    # In the order of the command line, which does these again: before the first descriptor, process and limit.
    standard_streams.open_closed_ones()
    init_process.hand_over_to_child()
    descriptors.raise_limit()
    with suppress(OSError):
        # The first launch tells.
        server_process.start_early(without_secrets(os.environ))
