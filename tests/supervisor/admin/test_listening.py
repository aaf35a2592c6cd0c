"""The admin address may be a Unix socket of its user alone, or have TLS; the command line talks to both."""

import json
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from onelane import config
from onelane.cli.main import main
from onelane.errors import BadConfig, PortTaken
from onelane.supervisor.admin.connections import MAX_CONNECTIONS, AdminConnection
from onelane.supervisor.admin.listening import listening

from tests.bounds import BOUND_S
from tests.running_app import RunningApp, echo, running
from tests.servers import Files


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A short one, as a path of a Unix socket must be."""
    with tempfile.TemporaryDirectory(prefix="admin-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def files(folder: Path) -> Files:
    files = Files(folder)
    files.issue("client", "client.example")
    return files


@pytest.fixture(scope="module")
def by_path(folder: Path) -> Iterator[RunningApp]:
    path = folder / "admin.sock"
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(str(path))
    with running(folder, echo(1), "--admin", f"unix:{path}") as app:
        assert app.admin == f"unix:{path}"
        yield app
        assert app.stop() == 0
        assert not path.exists()


@pytest.fixture(scope="module")
def by_tls(folder: Path, files: Files) -> Iterator[RunningApp]:
    settings = vars(files.tls(client_ca=files.path("ca.pem")))
    table = "\n".join(["[admin_tls]", *(f'{name} = "{path}"' for name, path in settings.items())])
    with running(folder, f"{echo(1)}\n{table}") as app:
        assert app.admin.startswith("https://127.0.0.1:")
        yield app


def command(app: RunningApp, *arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--admin", app.admin], env=environment)


def identity(files: Files) -> dict[str, str]:
    return {"ONELANE_ADMIN_CERT": files.path("client.pem"), "ONELANE_ADMIN_KEY": files.path("client.key")}


def test_a_unix_socket_is_its_users_alone_and_takes_every_command(by_path: RunningApp) -> None:
    assert Path(by_path.admin.removeprefix("unix:")).stat().st_mode & 0o777 == 0o600
    state = json.loads(command(by_path, "status", "--json").stdout)
    assert [shard["state"] for shard in state["apps"]["echo"]["shards"]] == ["ready"]
    assert command(by_path, "reload").stdout == "nothing has changed\n"


def test_where_no_socket_is_the_command_line_asks_whether_up_runs(folder: Path) -> None:
    run = CliRunner().invoke(main, ["reload", "--admin", f"unix:{folder}/nothing"])
    assert "nothing listens at unix:" in run.stderr


def test_with_tls_a_client_needs_a_trusted_certificate_and_trusts_the_servers(by_tls: RunningApp, files: Files) -> None:
    trusted = {"ONELANE_ADMIN_CA": files.path("ca.pem")}
    run = command(by_tls, "status", "--json", **trusted, **identity(files))
    assert json.loads(run.stdout)["apps"]["echo"]["shards"][0]["state"] == "ready"
    assert "no TLS connection (" in command(by_tls, "reload", **identity(files)).stderr, "the server is not trusted"
    assert command(by_tls, "reload", **trusted).exit_code == 1, "it shows no certificate"


def test_no_handshake_is_lost_however_early_its_first_bytes_come(by_tls: RunningApp, files: Files) -> None:
    host, port = by_tls.admin.removeprefix("https://").split(":")
    context = files.client(cert="client")
    for _ in range(30):
        with (
            socket.create_connection((host, int(port)), timeout=BOUND_S) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
        ):
            secured.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert secured.recv(12) == b"HTTP/1.1 200"


def test_peers_that_begin_no_handshake_take_no_connection_from_others(by_tls: RunningApp, files: Files) -> None:
    host, port = by_tls.admin.removeprefix("https://").split(":")
    with ExitStack() as silent:
        for _ in range(MAX_CONNECTIONS + 20):
            silent.enter_context(socket.create_connection((host, int(port)), timeout=BOUND_S))
        run = command(by_tls, "reload", ONELANE_ADMIN_CA=files.path("ca.pem"), **identity(files))
        assert (run.stdout, run.stderr) == ("nothing has changed\n", "")
    assert "admin.connections_closed full=" in by_tls.log.read_text()


async def test_a_path_that_somebody_uses_is_left_alone(folder: Path) -> None:
    plain, used = folder / "plain", folder / "used.sock"
    plain.touch()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(used))
        other.listen()
        for path, error, text in (
            (plain, PortTaken, "a file that is no socket"),
            (used, PortTaken, "Address already in use"),
            (folder / "nowhere" / "admin.sock", BadConfig, "no socket can be made at .*: No such file or directory"),
        ):
            with pytest.raises(error, match=text):
                async with listening(at(f"unix:{path}"), no_connection):
                    pass
        assert used.is_socket()
    assert plain.is_file()


def no_connection() -> AdminConnection:
    raise AssertionError("nobody connects")


def at(admin: str) -> config.Config:
    return config.parse({"admin": admin, "apps": {"x": {"services": ["a:B"], "listen": "127.0.0.1:1"}}})


@pytest.mark.parametrize("admin", ["unix:relative", f"unix:/{'x' * 107}", "unix:", "localhost:1", "unix:/a\0b"])
def test_an_admin_address_is_an_ip_and_a_port_or_an_absolute_path(admin: str) -> None:
    with pytest.raises(BadConfig, match="admin: expected "):
        at(admin)


def test_a_unix_socket_with_tls_is_a_fault() -> None:
    data = vars(at("unix:/a")) | {"admin_tls": {"cert": "a", "key": "b"}}
    with pytest.raises(BadConfig, match="admin_tls: admin is a Unix socket, which has no TLS"):
        config.parse(data)
