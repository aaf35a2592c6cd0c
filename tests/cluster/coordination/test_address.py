"""How etcd is reached, by `[cluster]`."""

from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from onelane.cluster.coordination.address import etcd_address
from onelane.core.cluster_settings import ClusterSettings, EtcdTls
from onelane.errors import BadConfig

LOCAL = ClusterSettings(name="arena", etcd=("http://127.0.0.1:2379",), advertise="a", insecure=True, lease_s=8)


def with_tls(**files: str) -> ClusterSettings:
    return replace(LOCAL, etcd=("https://127.0.0.1:2379",), etcd_tls=EtcdTls(**files))


def test_two_requests_that_are_not_answered_are_over_before_lives_are_fenced() -> None:
    address = etcd_address(LOCAL)
    assert (address.endpoints, address.tls, address.quiet_s) == (LOCAL.etcd, None, 8)
    assert 8 / 3 + 2 * address.timeout_s < 8 * 4 / 5


def test_the_files_of_tls_are_used(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("a").private_key_and_cert_chain_pem.write_to_path(tmp_path / "a.pem")
    address = etcd_address(with_tls(ca=f"{tmp_path}/ca.pem", cert=f"{tmp_path}/a.pem", key=f"{tmp_path}/a.pem"))
    assert address.tls
    assert address.tls.cert_store_stats()["x509_ca"] == 1


@pytest.mark.parametrize("name", ["ca", "cert"])
@pytest.mark.parametrize("text", [None, "no certificate"])
def test_a_file_that_cannot_be_used_is_told_by_the_name_of_its_setting(
    tmp_path: Path, name: str, text: str | None
) -> None:
    if text is not None:
        (tmp_path / "file.pem").write_text(text)
    file = f"{tmp_path}/file.pem"
    with pytest.raises(BadConfig, match=rf"etcd_tls\.{name}.*{file}.* cannot be used"):
        etcd_address(with_tls(**{name: file, "key": file} if name == "cert" else {name: file}))
