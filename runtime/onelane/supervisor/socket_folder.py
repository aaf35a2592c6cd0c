"""The folder of the shards' Unix sockets: of this supervisor alone, in the first place that can hold it.

A supervisor locks a file in its folder. So the next one knows the folders of those that were killed, and removes them.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from onelane.errors import OnelaneError

log = logging.getLogger("onelane.supervisor")
MAX_PATH_BYTES = 103
"""Longest path of a Unix socket: 107 bytes on Linux, 103 on macOS."""
FOLDER_PREFIX = "onelane-"
LOCK = "onelane.lock"


class NoSocketFolder(OnelaneError):
    """No folder can hold the Unix sockets of the shards."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("no folder can hold the Unix sockets of the shards: " + "; ".join(faults))


@contextlib.contextmanager
def socket_folder(environment: Mapping[str, str], longest_name: str) -> Iterator[Path]:
    """A new folder that only this user may enter, removed at the end. longest_name: of the files that it will hold.

    Raises:
        NoSocketFolder: no place can hold it; with the fault of each.
    """
    folder, lock = _create(environment, longest_name)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _create(environment: Mapping[str, str], longest_name: str) -> tuple[Path, int]:
    faults: list[str] = []
    for variable, place in _places(environment):
        try:
            _check_length(place, longest_name)
            _remove_abandoned(place)
            folder, lock = _create_in(place)
        except OSError as error:
            faults.append(f"{place}{f' ({variable})' if variable else ''}: {error.strerror}")
            continue
        for fault in faults:
            log.warning("supervisor.socket_folder_passed_over %s; the sockets are in %s", fault, folder)
        return folder, lock
    raise NoSocketFolder(faults)


def _places(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The variable that names a place, and the place; the preferred one first."""
    # systemd gives several, divided by colons.
    if runtime := environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]:
        yield "RUNTIME_DIRECTORY", runtime
    for variable in ("TMPDIR", "TEMP", "TMP"):
        if place := environment.get(variable):
            yield variable, place
    yield "", "/tmp"
    yield "", "/var/tmp"


def _check_length(place: str, longest_name: str) -> None:
    longest = os.path.join(place, f"{FOLDER_PREFIX}{'x' * 8}", longest_name)
    if (length := len(os.fsencode(longest))) > MAX_PATH_BYTES:
        raise OSError(0, f"too long, a socket's path would have {length} bytes, at most {MAX_PATH_BYTES}")


def _create_in(place: str) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=place))
        lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        if _lock(lock) and (folder / LOCK).exists():
            return folder, lock
        # Another supervisor has locked it first, to remove it.
        os.close(lock)


def _remove_abandoned(place: str) -> None:
    """Remove the folders of supervisors that were killed. Anything else that is called so is left alone."""
    for folder in Path(place).glob(f"{FOLDER_PREFIX}*"):
        try:
            if folder.lstat().st_uid != os.geteuid():
                continue
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue
        with contextlib.suppress(OSError):
            if _lock(lock):
                _remove_sockets(folder)
        os.close(lock)


def _remove_sockets(folder: Path) -> None:
    for entry in folder.iterdir():
        if stat.S_ISSOCK(entry.lstat().st_mode):
            entry.unlink()
    if [entry.name for entry in folder.iterdir()] == [LOCK]:
        (folder / LOCK).unlink()
        folder.rmdir()
        log.info("supervisor.socket_folder_removed %s its supervisor was killed", folder)


def _lock(descriptor: int) -> bool:
    """Lock an open file, if no other process has; the system unlocks it when this process ends."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
