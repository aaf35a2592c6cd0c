"""Unix sockets that siblings connect to, in a folder that may be removed at any time: cleaners of temporary files do.

Whoever may enter the folder is trusted as a sibling, so it is this user's alone; also where it is made anew, in a place
where every user may have made another of its name meanwhile.
"""

import contextlib
import os
import socket
import stat
from pathlib import Path

BACKLOG = 1024


def listening(path: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A socket that listens at `path`, in place of any other. The folder is made where it is missing.

    Raises:
        OSError: the folder cannot be made, or is open to other users.
    """
    make_way(path)
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        sock.bind(path)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def make_way(path: str) -> None:
    """Have a folder for a socket that will listen at `path`, and nothing else at the path.

    Raises:
        OSError: the folder cannot be made, or is open to other users.
    """
    folder = Path(path).parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o022:
        raise PermissionError(f"{folder} is open to other users")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def is_listening(path: str) -> bool:
    """Whether a process has a socket that listens at `path`, also one that accepts nothing now."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            # Its backlog is full.
            return True
        except OSError:
            return False
    return True


class ListeningPath:
    """The path of a listening socket, to see whether it still leads there: a socket outlives its path."""

    def __init__(self, path: str) -> None:
        """path: of a socket that listens now, or that was removed before now."""
        self._path = path
        self._identity = _identity(path)

    @property
    def is_in_place(self) -> bool:
        return self._identity is not None and _identity(self._path) == self._identity

    def listen_again(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """Another socket, to which the path leads from now on; see `listening`."""
        sock = listening(self._path, kind)
        self._identity = _identity(self._path)
        return sock


def _identity(path: str) -> tuple[int, int, int] | None:
    """Of the file at `path`; None where there is none. File systems use the numbers of removed files again."""
    try:
        info = os.lstat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino, info.st_mtime_ns
