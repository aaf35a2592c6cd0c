"""The line of the services' own code that a failure is to be looked for: of an exception, of a call of ours, of a
handler. For log lines; a line is `file:number`, and "" where no code of the services is known."""

import inspect
import os
import site
import sys
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import onelane

PACKAGE = str(Path(onelane.__file__).parent) + os.sep
LIBRARIES = tuple({folder + os.sep for folder in (str(Path(inspect.__file__).parent), *site.getsitepackages())})
"""The folders of the standard library and of installed packages. To ask `sysconfig` would cost a process 350 KiB."""
MAX_TEXT = 500
"""Characters of an exception's text in a log line; its traceback has the rest."""


def line_of(error: BaseException) -> str:
    """The innermost line of the services' own code in the traceback of an exception; else of an installed library; else
    the same of its cause."""
    lines = [(_file_of(frame), number) for frame, number in traceback.walk_tb(error.__traceback__)]
    line = _innermost(reversed(lines))
    return line if line or error.__cause__ is None else line_of(error.__cause__)


def calling_line() -> str:
    """The line of the services' own code that has called the function of ours which asks."""
    return _innermost(_outward(sys._getframe(1)))


def standing_line(frame: FrameType | None, code: CodeType) -> str:
    """The line at which a generator stands; its definition where it has ended; "" for one of ours around a handler."""
    if code.co_filename.startswith(PACKAGE):
        return ""
    return f"{code.co_filename}:{frame.f_lineno if frame is not None else code.co_firstlineno}"


def definition_of(handler: Any) -> str:
    """The line where a handler, or the class of an object, is defined."""
    while isinstance(handler, partial):
        handler = handler.func
    if not callable(handler):
        return ""
    if not inspect.isroutine(handler):
        handler = type(handler).__call__  # An object that is called like a function.
    code = getattr(inspect.unwrap(getattr(handler, "__func__", handler)), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else ""


def summary(error: BaseException) -> str:
    """An exception's class and text in one line, whatever its `__str__` does."""
    text = " ".join("".join(traceback.format_exception_only(error)).split())
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"


def _file_of(frame: FrameType) -> str:
    """The file of a frame's code. A function of ours that is compiled has its file's name without our folder."""
    name = str(frame.f_globals.get("__name__", ""))
    file = frame.f_code.co_filename
    return PACKAGE + file if name.startswith("onelane.") and not file.startswith(PACKAGE) else file


def _outward(frame: FrameType | None) -> Iterator[tuple[str, int]]:
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back


def _innermost(lines: Iterator[tuple[str, int]]) -> str:
    """The first of these lines, innermost first, that is the services' own; else the first of an installed library."""
    library_line = ""
    for file, number in lines:
        if file.startswith((PACKAGE, "<")) or file.endswith(".pyx"):
            continue
        if not file.startswith(LIBRARIES):
            return f"{file}:{number}"
        if not library_line and "-packages" in file:
            library_line = f"{file}:{number}"
    return library_line
