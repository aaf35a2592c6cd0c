"""Single keys of the terminal, without Enter and without an echo."""

import os
import re
import select
import signal
import sys
import termios
import tty
from collections import deque
from types import TracebackType
from typing import Any

NAMES = {
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    "\x1b[H": "home",
    "\x1b[F": "end",
    "\x1b[1~": "home",
    "\x1b[4~": "end",
}
"""Escape sequences of xterm, which all terminals of today send for these keys."""


KEY = re.compile(r"\x1b\[[0-9;]*[A-Za-z~]|\x1bO.|.", re.DOTALL)


class Keyboard:
    """The keys of standard input while it is entered; the terminal is as before at the end, also where SIGTERM ends the
    program. Ctrl-C stays Ctrl-C.

    Where standard input is no terminal there are no keys.
    """

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno()
        self._pressed: deque[str] = deque()
        """Keys that were read and not asked for yet."""
        self._on_sigterm: Any = signal.SIG_DFL
        self._before = termios.tcgetattr(self._fd) if os.isatty(self._fd) else None

    def __enter__(self) -> "Keyboard":
        if self._before is not None:
            self._on_sigterm = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
            tty.setcbreak(self._fd)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._before is not None:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def key(self, wait_s: float) -> str:
        """The next key: its character, or its name in `NAMES`; "" if none was pressed within `wait_s`."""
        if not self._pressed:
            readable, _, _ = select.select([self._fd] if self._before is not None else [], [], [], wait_s)
            # A key that is held down arrives many times in one read.
            text = os.read(self._fd, 1024).decode("utf-8", "replace") if readable else ""
            self._pressed.extend(KEY.findall(text))
        key = self._pressed.popleft() if self._pressed else ""
        return NAMES.get(key.replace("\x1bO", "\x1b["), key)
