"""The files of the links: refused where another machine would refuse them, and loaded again once they change."""

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from onelane.core.machine_links import MachineLinks
from onelane.errors import BadConfig
from onelane.server import tls
from onelane.server.machine_link_tls import MachineLinkTls

from tests.machines import CLUSTER, Certificates
from tests.running_app import eventually

PAST = datetime.now(UTC) - timedelta(days=1)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


def test_both_ends_ask_for_a_certificate_and_speak_no_older_tls(certificates: Certificates) -> None:
    links = MachineLinkTls(certificates.links("a"))
    assert links.server
    assert links.client
    for context in (links.server.newest, links.client.newest):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
    assert links.server.newest.num_tickets == 0


def test_insecure_links_have_no_context() -> None:
    links = MachineLinkTls(MachineLinks(CLUSTER, "a", None))
    assert (links.server, links.client) == (None, None)


@pytest.mark.parametrize("name", ["ca.pem", "a.pem", "a.key"])
@pytest.mark.parametrize("text", [None, "no pem"])
def test_a_file_that_cannot_be_used_is_named_with_its_setting(
    certificates: Certificates, name: str, text: str | None
) -> None:
    links = certificates.links("a")
    file = certificates.folder / name
    file.unlink() if text is None else file.write_text(text)
    setting = {"ca.pem": "ca", "a.pem": "cert", "a.key": "key"}[name]
    with pytest.raises(BadConfig, match=rf"(?s)cluster\.tls: .*  {setting}: {file}"):
        MachineLinkTls(links)


def test_a_certificate_of_another_authority_is_refused_where_it_is_loaded(certificates: Certificates) -> None:
    certificates.issue("a", by=trustme.CA())
    with pytest.raises(BadConfig, match=r"cert: .*a\.pem: other machines refuse it by .*ca\.pem: "):
        MachineLinkTls(certificates.links("a"))


def test_a_certificate_that_has_expired_is_refused_where_it_is_loaded(certificates: Certificates) -> None:
    certificates.issue("a", not_after=PAST)
    with pytest.raises(
        BadConfig, match=r"cert: .*a\.pem: other machines refuse it by .*ca\.pem: certificate has expired"
    ):
        MachineLinkTls(certificates.links("a"))


@pytest.mark.parametrize("name", ["b.arena.onelane.internal", "a.other.onelane.internal", "a"])
def test_a_certificate_of_another_name_is_refused_where_it_is_loaded(certificates: Certificates, name: str) -> None:
    certificates.issue("a", name)
    with pytest.raises(BadConfig, match=rf"its certificate is of {name}, not of a\.arena\.onelane\.internal"):
        MachineLinkTls(certificates.links("a"))


async def test_files_that_change_are_loaded_and_those_that_cannot_be_used_are_not(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tls, "LOOK_S", 0.01)
    links = MachineLinkTls(certificates.links("a"))
    assert links.server
    assert links.client
    following = asyncio.create_task(links.follow())
    try:
        await asyncio.sleep(0)
        before = (links.server.newest, links.client.newest)
        certificates.issue("a", "b.arena.onelane.internal")
        await eventually(lambda: "not of a.arena.onelane.internal" in caplog.text)
        assert "tls.reload_failed the certificates that were loaded before stay in use" in caplog.text
        assert (links.server.newest, links.client.newest) == before
        certificates.issue("a")
        await eventually(lambda: links.server is not None and links.server.newest is not before[0])
        assert links.client.newest is not before[1]
    finally:
        following.cancel()
