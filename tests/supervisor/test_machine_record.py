"""What a machine tells the others of itself, by `[cluster]`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from onelane.core.cluster_settings import ClusterSettings, ClusterTls
from onelane.errors import BadConfig
from onelane.supervisor.machine_record import page_url, record_of, settings_digest

from tests.supervisor.cluster_variables import app_of

LOCAL = ClusterSettings(name="arena", etcd=("http://127.0.0.1:1",), advertise="10.0.0.1", insecure=True, machine="b")


def test_the_record_has_the_name_the_release_and_a_start_of_its_own() -> None:
    first, second = (record_of(LOCAL, {"echo": app_of()}) for _ in range(2))
    assert (first.name, first.advertise, first.trust, first.lease_s) == ("b", "10.0.0.1", "", 5)
    assert first.release
    assert first.start != second.start
    assert first.settings == second.settings


def test_fewer_ports_for_links_than_shards_are_refused() -> None:
    settings = replace(LOCAL, link_ports="20000-20001")
    assert record_of(settings, {"echo": app_of(shards=2)}).name == "b"
    with pytest.raises(BadConfig, match="20000-20001 are 2 ports, expected one for each of the 3 shards, better two"):
        record_of(settings, {"echo": app_of(shards=3)})


@pytest.mark.parametrize(
    ("admin", "is_tls", "page"),
    [
        ("127.0.0.1:9464", False, ""),
        ("[::1]:9464", False, ""),
        ("unix:/run/onelane.sock", False, ""),
        ("10.0.0.1:9464", True, "https://10.0.0.1:9464"),
        ("0.0.0.0:9464", False, "http://b.internal:9464"),
        ("[::]:9464", True, "https://b.internal:9464"),
    ],
)
def test_the_record_has_the_url_of_a_page_that_others_can_reach(admin: str, is_tls: bool, page: str) -> None:
    assert page_url(admin, "b.internal", is_tls=is_tls) == page
    assert page_url("[::]:1", "fd00::1", is_tls=False) == "http://[fd00::1]:1"
    assert record_of(LOCAL, {}, page=page).admin == page


def test_machines_may_differ_in_addresses_and_numbers_of_shards(tmp_path: Path) -> None:
    other = app_of(listen="10.0.0.2:1", shards=7, max_in_flight=9, state={"folder": str(tmp_path)})
    assert settings_digest(other) == settings_digest(app_of())


@pytest.mark.parametrize(
    "settings",
    [
        {"keys": {"echo.v1.Echo/Unary": "text"}},
        {"turns": {"echo.v1.Echo/Unary": "FREE"}},
        {"points": 64},
        {"services": ("tests.lane.counting:Counting",)},
        {"state": {"store": "memory"}},
    ],
)
def test_machines_may_not_differ_in_what_decides_about_keys(settings: dict[str, Any]) -> None:
    assert settings_digest(app_of(**settings)) != settings_digest(app_of())


def test_the_authority_of_links_is_known_by_its_certificates_in_any_order(tmp_path: Path) -> None:
    def trust_of(*authorities: trustme.CA) -> str:
        file = tmp_path / "ca.pem"
        file.write_bytes(b"# a comment\n" + b"".join(authority.cert_pem.bytes() for authority in authorities))
        tls = ClusterTls(ca=str(file), cert="", key="")
        return record_of(replace(LOCAL, insecure=False, tls=tls), {}).trust

    authority, other = trustme.CA(), trustme.CA()
    assert trust_of(authority, other) == trust_of(other, authority)
    assert len({trust_of(authority), trust_of(other), trust_of(authority, other)}) == 3


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_a_file_of_the_authority_that_cannot_be_used_is_told_by_its_setting(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "ca.pem").write_text(text)
    settings = replace(LOCAL, insecure=False, tls=ClusterTls(ca=f"{tmp_path}/ca.pem", cert="", key=""))
    with pytest.raises(BadConfig, match=r"tls\.ca: .*ca\.pem"):
        record_of(settings, {})


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"listener": "grpcio"}, "echo.listener: expected \"native\" with [cluster], not 'grpcio'"),
        ({"membership": "static"}, 'echo.membership: expected "supervisor" with [cluster]'),
        ({"pins": {"k": 0}}, "echo.pins: expected none with [cluster]"),
    ],
)
def test_an_app_that_no_other_machine_could_take_over_from_is_refused_by_its_setting(settings: Any, fault: str) -> None:
    with pytest.raises(BadConfig) as caught:
        record_of(LOCAL, {"echo": app_of(**settings)})
    (reason,) = caught.value.faults
    assert reason.startswith(fault)
