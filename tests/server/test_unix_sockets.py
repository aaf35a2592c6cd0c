"""A Unix socket outlives its path; it listens again in a folder that only this user may enter."""

import shutil
import socket
from pathlib import Path

import pytest
from onelane.server import unix_sockets
from onelane.server.unix_sockets import ListeningPath


def accepts(path: Path, listening: socket.socket) -> bool:
    """Whether who connects to `path` reaches `listening`."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        try:
            accepted, _ = listening.accept()
        except BlockingIOError:
            return False
        accepted.close()
        return True


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "s"


def test_a_path_that_was_removed_leads_to_the_socket_that_listens_again(path: Path) -> None:
    with unix_sockets.listening(str(path)):
        listening_path = ListeningPath(str(path))
        assert listening_path.is_in_place
        shutil.rmtree(path.parent)
        assert not listening_path.is_in_place
        with listening_path.listen_again() as restored:
            assert listening_path.is_in_place
            assert path.parent.stat().st_mode & 0o777 == 0o700
            assert accepts(path, restored)


def test_a_path_that_leads_to_another_socket_is_not_in_place(path: Path) -> None:
    """The shard has listened anew by itself, and has died; its supervisor holds the first socket."""
    with unix_sockets.listening(str(path)) as first:
        listening_path = ListeningPath(str(path))
        with unix_sockets.listening(str(path)) as second:
            assert not listening_path.is_in_place
            assert accepts(path, second)
            assert not accepts(path, first)


def test_a_folder_that_is_open_to_others_is_refused(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.parent.chmod(0o777)
    with pytest.raises(PermissionError, match="open to other users"):
        unix_sockets.listening(str(path))


def test_a_link_to_another_folder_is_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "else").mkdir(mode=0o700)
    path.parent.symlink_to(tmp_path / "else")
    with pytest.raises(PermissionError, match="open to other users"):
        unix_sockets.listening(str(path))


def test_a_path_is_listened_at_as_long_as_a_socket_is_open_there(path: Path) -> None:
    assert not unix_sockets.is_listening(str(path))
    with unix_sockets.listening(str(path)) as listening:
        listening.listen(0)
        # The third one finds the backlog full.
        assert [unix_sockets.is_listening(str(path)) for _ in range(3)] == [True] * 3
    assert not unix_sockets.is_listening(str(path))
