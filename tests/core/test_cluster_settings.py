"""`[cluster]`: what people write wrongly is told with what was expected."""

from typing import Any

import pytest
from onelane.core.cluster_settings import ClusterSettings
from onelane.core.validation import checked
from pydantic import ValidationError

TLS = {"ca": "ca.pem", "cert": "a.pem", "key": "a.key"}
WHOLE: dict[str, Any] = {
    "name": "arena",
    "etcd": ["https://10.0.0.5:2379", "https://etcd-2.example:2379/"],
    "etcd_user": "onelane",
    "etcd_password": "p",
    "etcd_tls": {"ca": "etcd.pem"},
    "machine": "a",
    "advertise": "10.0.0.11",
    "tls": TLS,
}


def test_what_the_design_shows_is_accepted_and_its_password_is_not_shown() -> None:
    settings = checked(ClusterSettings, WHOLE)
    assert settings.lease_s == 5
    assert settings.etcd_password.text == "p"
    assert "'p'" not in repr(settings)


@pytest.mark.parametrize("host", ["10.0.0.11", "fd00::1", "a", "a.example.org", "node-7"])
def test_a_machine_is_advertised_by_any_address_or_name_of_a_host(host: str) -> None:
    assert checked(ClusterSettings, WHOLE | {"advertise": host}).advertise == host


def test_a_variable_of_the_environment_names_several_members_with_commas() -> None:
    settings = checked(ClusterSettings, WHOLE | {"etcd": "https://a:2379, https://b:2379"})
    assert settings.etcd == ("https://a:2379", "https://b:2379")


def test_an_etcd_on_this_host_needs_no_tls() -> None:
    checked(ClusterSettings, WHOLE | {"etcd": ["http://127.0.0.1:2379", "http://[::1]:2379"], "etcd_tls": None})


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"name": "Arena"}, "expected 1 to 63 of a-z, 0-9 and -"),
        ({"name": "arena/machines"}, "expected 1 to 63 of a-z"),
        ({"name": ""}, "expected 1 to 63 of a-z"),
        ({"machine": "a/b"}, "expected at most 253 letters"),
        ({"machine": "-a"}, "expected at most 253 letters"),
        ({"etcd": []}, "at least 1"),
        ({"etcd": ["10.0.0.5:2379"]}, "such as https://10.0.0.5:2379"),
        ({"etcd": ["https://10.0.0.5"]}, "such as https://10.0.0.5:2379"),
        ({"etcd": ["https://10.0.0.5:x"]}, "such as https://10.0.0.5:2379"),
        ({"etcd": ["https://10.0.0.5:2379/v3"]}, "such as https://10.0.0.5:2379"),
        ({"etcd": ["https://[::1:2379"]}, "such as https://10.0.0.5:2379"),
        ({"etcd": ["http://10.0.0.5:2379"], "etcd_tls": None}, "who can reach this etcd owns the cluster"),
        ({"etcd": ["http://127.0.0.1:2379"]}, "etcd_tls is set, and http://127.0.0.1:2379 is not https"),
        ({"etcd_password": ""}, "etcd_user and etcd_password: expected both or none"),
        ({"etcd_user": ""}, "etcd_user and etcd_password: expected both or none"),
        ({"etcd_tls": {"cert": "c.pem"}}, "cert and key: expected both or none"),
        ({"advertise": "10.0.0.11:50051"}, "without a port"),
        ({"advertise": "0.0.0.0"}, "no address at which other machines reach this one"),
        ({"advertise": "::"}, "no address at which other machines reach this one"),
        ({"advertise": "300.1.1.1"}, "expected an IP address or the name of a host"),
        ({"advertise": ""}, "expected an IP address or the name of a host"),
        ({"xds": "18000"}, "expected ip:port, such as 0.0.0.0:18000"),
        ({"xds": "a:18000"}, "expected ip:port"),
        ({"xds": "0.0.0.0:70000"}, "expected ip:port"),
        ({"link_ports": "20000"}, "expected FIRST-LAST, such as 20000-20099"),
        ({"link_ports": "20099-20000"}, "expected FIRST-LAST"),
        ({"link_ports": "0-5"}, "expected FIRST-LAST"),
        ({"link_ports": "20000-70000"}, "expected FIRST-LAST"),
        ({"lease_s": 1}, "greater than or equal to 2"),
        ({"lease_s": 2.5}, "valid integer"),
        ({"lease_s": 3600}, "less than or equal to 60"),
        ({"tls": None}, "links between machines are mutual TLS"),
        ({"insecure": True}, "expected one of them"),
        ({"tls": {"ca": "ca.pem"}}, "Field required"),
        ({"etdc": []}, "Unexpected keyword argument"),
    ],
)
def test_a_mistake_is_told(changed: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError) as error:
        checked(ClusterSettings, WHOLE | changed)
    assert expected in str(error.value)


def test_a_password_in_an_address_of_etcd_is_refused_and_not_shown() -> None:
    with pytest.raises(ValidationError) as error:
        checked(ClusterSettings, WHOLE | {"etcd": ["https://root:hunter2@10.0.0.5:2379"]})
    assert "etcd_user and etcd_password are for these" in error.value.errors(include_input=False)[0]["msg"]
