"""What `onelane cluster init` makes: files that machines of one cluster take, and no others."""

import stat
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from onelane.cli import cluster_files
from onelane.cli.cluster_files import make_files
from onelane.cli.main import main
from onelane.core.machine_links import LinkFiles, MachineLinks
from onelane.errors import BadConfig
from onelane.server.machine_link_tls import MachineLinkTls, _names, _shake_hands


def init(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["cluster", "init", *arguments, "--folder", str(folder)])


def tls_of(folder: Path, machine: str, cluster: str = "arena") -> MachineLinkTls:
    files = LinkFiles(str(folder / "ca.pem"), str(folder / f"{machine}.pem"), str(folder / f"{machine}.key"))
    return MachineLinkTls(MachineLinks(cluster, machine, files))


def test_machines_of_one_init_and_of_a_later_one_prove_their_names_to_each_other(tmp_path: Path) -> None:
    make_files(tmp_path, "arena", ["a"])
    make_files(tmp_path, "arena", ["b"])
    a, b = (tls_of(tmp_path, machine) for machine in "ab")
    assert a.client is not None
    assert b.server is not None
    seen = _names(_shake_hands(a.client.newest, b.server.newest))
    assert seen == ["b.arena.onelane.internal"]
    assert a.links.fault_of(seen, "b") == ""
    assert a.links.fault_of(seen, "c") != ""


def test_a_certificate_is_of_its_own_cluster_alone(tmp_path: Path) -> None:
    make_files(tmp_path, "arena", ["a"])
    with pytest.raises(BadConfig, match=r"a\.pem"):
        tls_of(tmp_path, "a", cluster="shop")


def test_every_file_is_its_users_alone_and_said_where_it_goes(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    ran = init(folder, "arena", "a", "b")
    assert ran.exit_code == 0
    files = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    assert files == dict.fromkeys(["ca.pem", "ca.key", "a.pem", "a.key", "b.pem", "b.key"], 0o600)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert f"copy {folder}/ca.pem, {folder}/a.pem and {folder}/a.key to machine a" in ran.output
    assert f"keep {folder}/ca.key here, and nowhere else" in ran.output
    assert 'tls = { ca = "ca.pem", cert = "b.pem", key = "b.key" }' in ran.output


@pytest.mark.parametrize("name", ["b.pem", "b.key", "ca.key"])
def test_nothing_is_overwritten_and_nothing_is_written_beside_what_is_in_the_way(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    ran = init(tmp_path, "arena", "a", "b")
    assert ran.exit_code == 3
    assert f"{tmp_path / name} is there already, and is not overwritten" in ran.output
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "mine")]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["Arena", "a"], "'Arena': expected 1 to 63 of a-z, 0-9 and -"),
        (["arena", "../a"], "'../a': expected at most 253 letters, digits, dots"),
        (["arena", "ca"], "'ca' is the name of the authority's own files"),
        (["arena", "a", "b", "a"], "'a' is named twice"),
    ],
)
def test_names_that_the_settings_would_refuse_are_told(tmp_path: Path, arguments: list[str], fault: str) -> None:
    ran = init(tmp_path, *arguments)
    assert (ran.exit_code, list(tmp_path.iterdir())) == (3, [])
    assert fault in ran.output


def test_an_authority_that_cannot_sign_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_files(tmp_path / "one", "arena", ["a"])
    make_files(tmp_path / "two", "arena", ["a"])
    (tmp_path / "one" / "ca.key").write_bytes((tmp_path / "two" / "ca.key").read_bytes())
    with pytest.raises(BadConfig, match=r"one/ca\.key is not the key that was made with ca\.pem"):
        make_files(tmp_path / "one", "arena", ["b"])
    (tmp_path / "one" / "ca.pem").write_text("no certificate")
    with pytest.raises(BadConfig, match="one cannot be used"):
        make_files(tmp_path / "one", "arena", ["b"])

    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) + timedelta(days=366)

    monkeypatch.setattr(cluster_files, "datetime", Later)
    with pytest.raises(BadConfig, match=r"two/ca\.pem has expired"):
        make_files(tmp_path / "two", "arena", ["b"])


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = init(tmp_path / "file" / "below", "arena", "a")
    assert ran.exit_code == 3
    assert "cannot be written: Not a directory" in ran.output


def test_without_the_package_that_it_needs_it_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.x509", None)
    ran = init(tmp_path, "arena", "a")
    assert (ran.exit_code, list(tmp_path.iterdir())) == (3, [])
    assert "the package cryptography is missing: pip install 'onelane[cluster]'" in ran.output
