"""`onelane up --reload`: what becomes of a file that has changed.

A proto is generated anew; of the settings file the services' settings are used; for code every shard is restarted, one
after another, each once the next process has taken over its keys with their state. Code with a fault restarts nothing:
the processes that run serve on.

Promises: changes that come together are followed together; those that come meanwhile are followed next.
"""

import logging
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import cache_from_source, find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from onelane.errors import Invalid
from onelane.supervisor.guard import guarded
from onelane.supervisor.restarts import NotRestarted

if TYPE_CHECKING:
    from onelane.supervisor.supervisor import Supervisor

QUIET_MS = 100
"""Changes are followed once none has come for this long."""
LONGEST_MS = 2000
"""The longest that changes wait, where they do not cease."""
LOOK_MS = 500
"""How long the watching thread, which cannot be cancelled, may outlive this."""
CODE, PROTO = ".py", ".proto"
IGNORED_FOLDERS = {"__pycache__", "node_modules", "site-packages", "venv", "build", "dist"}
"""Beside all whose names begin with a dot."""
Announce = Callable[..., None]
"""See `run_apps.Announcer`."""


def check_possible(*, inline: bool) -> None:
    """Raises:
    Invalid: files cannot be watched, or code that has changed could not be imported again.
    """
    if inline:
        raise Invalid("--reload starts the processes of shards anew, and --inline has none: choose one of them")
    if find_spec("watchfiles") is None:
        raise Invalid("--reload needs watchfiles: pip install 'onelane[reload]'")


@dataclass(frozen=True, slots=True)
class FileChanges:
    """Files that have changed, by what is done about them."""

    code: tuple[Path, ...]
    protos: tuple[Path, ...]
    settings: bool

    @classmethod
    def of(cls, paths: Iterable[Path], settings: Path) -> "FileChanges":
        """settings: the path of the settings file."""
        ordered = sorted(set(paths))
        code = tuple(path for path in ordered if path.suffix == CODE)
        return cls(code, tuple(path for path in ordered if path.suffix == PROTO), settings in ordered)


def is_followed(path: Path, settings: Path, folders: Sequence[Path]) -> bool:
    """Whether a file is one whose change matters: no file of an editor, of an environment or of a cache."""
    if path == settings:
        return True
    below = next((path.relative_to(folder) for folder in folders if path.is_relative_to(folder)), path)
    is_hidden = any(part.startswith(".") or part in IGNORED_FOLDERS for part in below.parts)
    return path.suffix in (CODE, PROTO) and not is_hidden


def syntax_fault(path: Path) -> str:
    """Why the file is no Python, with its line; "" where it is, or is not there."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(path.read_bytes(), path, "exec", dont_inherit=True)
    except FileNotFoundError:
        return ""
    except SyntaxError as error:
        return f"{path}:{error.lineno}: {error.msg}" + (f": {error.text.strip()}" if error.text else "")
    except (OSError, ValueError) as error:
        return f"{path}: {error}"
    return ""


def _syntax_faults(paths: Iterable[Path]) -> list[str]:
    return [fault for fault in map(syntax_fault, paths) if fault]


def forget_bytecode(paths: Iterable[Path]) -> None:
    """Remove what Python has compiled of these files: it knows a change by its second and the file's size alone."""
    for path in paths:
        for level in ("", "1", "2"):
            with suppress(OSError, NotImplementedError):
                Path(cache_from_source(str(path), optimization=level)).unlink()


def wait_for_change(settings: Path, folders: Sequence[Path], on_watching: Callable[[], None]) -> bool:
    """Wait until a file that is followed has changed; False if SIGINT or SIGTERM comes first. In the main thread, where
    no loop runs. on_watching: is called once no change is missed."""
    from watchfiles import watch

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    watched = watch(
        *folders,
        settings.resolve().parent,
        watch_filter=_filter(settings.resolve(), [folder.resolve() for folder in folders]),
        step=QUIET_MS,
        debounce=LONGEST_MS,
        rust_timeout=QUIET_MS,
        yield_on_timeout=True,
        stop_event=stop,
    )
    changes = next(watched, None)
    on_watching()
    while changes is not None and not changes:
        changes = next(watched, None)
    if changes is None:
        return False
    forget_bytecode(Path(path) for _, path in changes if path.endswith(CODE))
    return True


def _filter(settings: Path, folders: Sequence[Path]) -> Callable[[object, str], bool]:
    return lambda _, path: is_followed(Path(path), settings, folders)


class CodeFollower:
    """See the module. Owned by `onelane up`."""

    def __init__(self, supervisor: "Supervisor", settings: Path, folders: Sequence[Path], announce: Announce) -> None:
        """settings: the settings file. folders: are watched; modules of protos in `proto` are generated into them."""
        self._supervisor = supervisor
        self._settings = settings.resolve()
        self._folders = [folder.resolve() for folder in folders]
        self._announce = announce
        self._unloaded: set[Path] = set()
        """Code that has changed since the last restart."""

    async def run(self, ready: anyio.Event) -> None:
        """Watch until this is cancelled, and follow what has changed once the shards are ready."""
        from watchfiles import awatch

        # It tells each change at the level of information.
        logging.getLogger("watchfiles").setLevel(logging.WARNING)
        try:
            async for changes in awatch(
                *self._folders,
                self._settings.parent,
                watch_filter=_filter(self._settings, self._folders),
                step=QUIET_MS,
                debounce=LONGEST_MS,
                rust_timeout=LOOK_MS,
                stop_event=self._supervisor.stop_asked,
            ):
                await ready.wait()
                if not self._supervisor.stop_asked.is_set():
                    await guarded(self.follow, FileChanges.of((Path(path) for _, path in changes), self._settings))
        except OSError as error:
            self._announce("not watching", f"changes of files are not followed: {error}", reason=str(error))

    async def follow(self, changes: FileChanges) -> None:
        """Do what the changes ask for; what cannot be done is announced."""
        if changes.settings:
            await self._use_settings()
        self._unloaded |= set(changes.code)
        has_generated = bool(changes.protos) and await self._generate(changes.protos)
        # The modules that were generated are changes of code, which come next.
        if changes.code and not has_generated:
            await self._restart(changes.code)

    async def _use_settings(self) -> None:
        outcome = await self._supervisor.reload()
        if outcome.faults:
            self._refuse("\n".join(outcome.faults))
        for change in outcome.changed:
            self._announce("settings changed", f"changed {change}", change=change)
        for change in outcome.needs_restart:
            self._announce("needs restart", f"{change} (needs a restart of `onelane up`)", change=change)

    async def _generate(self, protos: Sequence[Path]) -> bool:
        """Whether modules were generated."""
        from onelane.cli.protoc import generate

        folders = [f for f in self._folders if any(path.is_relative_to(f / "proto") for path in protos)]
        for folder in folders:
            root = folder / "proto"
            try:
                await anyio.to_thread.run_sync(partial(generate, [root], root=root, out=folder))
            except Invalid as error:
                self._refuse(str(error))
                return False
            self._announce("generated", f"generated {self._names(protos)}", files=self._names(protos))
        return bool(folders)

    async def _restart(self, changed: Sequence[Path]) -> None:
        if faults := await anyio.to_thread.run_sync(_syntax_faults, sorted(self._unloaded)):
            self._refuse("\n".join(faults))
            return
        forget_bytecode(self._unloaded)
        names = self._names(changed)
        self._announce("reloading", f"{names} changed, reloading", files=names)
        begin = time.monotonic()
        try:
            await self._supervisor.recycle()
        except NotRestarted as error:
            if not self._supervisor.stop_asked.is_set():
                self._refuse(str(error))
            return
        self._unloaded.clear()
        seconds = time.monotonic() - begin
        self._announce("reloaded", f"reloaded in {seconds:.1f} s", seconds=round(seconds, 3))

    def _refuse(self, reason: str) -> None:
        sentence = f"not reloaded, what ran before serves on: {reason}"
        self._announce("not reloaded", sentence, reason=reason)

    def _names(self, paths: Sequence[Path]) -> str:
        first = ", ".join(map(self._shown, paths[:3]))
        return first + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")

    def _shown(self, path: Path) -> str:
        below: Any = next((path.relative_to(f) for f in self._folders if path.is_relative_to(f)), path)
        return str(below)
