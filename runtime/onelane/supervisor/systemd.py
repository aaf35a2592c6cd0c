"""Notifications to systemd about the service's state, over `$NOTIFY_SOCKET`, as sd_notify(3) does it."""

import os
import socket
import time
from contextlib import suppress


def notify(state: str) -> None:
    """Send a state, such as READY=1. Does nothing where `$NOTIFY_SOCKET` is not set."""
    target = os.environ.get("NOTIFY_SOCKET")
    if not target:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.sendto(state.encode(), "\0" + target[1:] if target.startswith("@") else target)


def notify_reloading() -> None:
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
