"""Standard input, output and error that are always open.

A program may be started without them (`onelane up <&-`). Their descriptors would then belong to whatever is opened
first, a socket or the event loop's own; libuv aborts the process where it meets one of its own there, and a shard would
log into a connection.
"""

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def open_closed_ones() -> None:
    """Open /dev/null in place of each standard stream that is closed."""
    for descriptor, (name, mode) in enumerate(STREAMS):
        try:
            os.fstat(descriptor)
        except OSError:
            _discard(descriptor)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))


def announce(line: str) -> None:
    """Print a line to standard output. Where nobody takes it any more, it is dropped, and so are all that follow."""
    import click

    try:
        click.echo(line)
    except OSError:
        # Python writes once more at its end what is left in the buffer.
        _discard(1)


def _discard(descriptor: int) -> None:
    """Have a descriptor lead to /dev/null."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
    os.set_inheritable(descriptor, True)


def console() -> "Console":
    """A console that prints text as it is, without markup."""
    from rich.console import Console

    # Rich takes a pipe for a terminal where FORCE_COLOR is set, as in many a CI.
    return Console(markup=False, emoji=False, highlight=False, force_terminal=sys.stdout.isatty())
