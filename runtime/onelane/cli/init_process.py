"""The first process of a container: it takes the exit codes of orphans, and onelane runs as its child.

A process whose parent has ended becomes a child of process 1, and stays as a zombie until process 1 has waited for it.
A supervisor that waited for any child would take the exit codes of its own from the event loop; so the waiting is done
by a process that has no other child than the supervisor. As `docker run --init` does it.
"""

import os
import signal

PASSED_ON = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
SIGNALLED = 128
"""A shell's exit code of a process that signal n has ended is 128 + n."""


def hand_over_to_child() -> None:
    """Go on in a child where this is process 1, which then only waits and ends with the child's exit code.

    Before the first thread, loop or signal handler of this process.
    """
    if os.getpid() == 1:
        continue_in_child()


def continue_in_child() -> None:
    """Go on in a child. This process passes signals on to it, and waits for it and for every orphan."""
    # From now on, so that none is lost before the child is there.
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    child = os.fork()
    if child == 0:
        # A terminal's Ctrl-C would else reach it twice: from the terminal, and passed on.
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        return
    for number in PASSED_ON:
        signal.signal(number, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    os._exit(_wait(child))


def _wait(child: int) -> int:
    """Wait for all children until this one has ended; its exit code."""
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else SIGNALLED - code
