"""`[apps.NAME.auth]` is read, and what could let a stranger in is refused by name."""

import tomllib
from typing import Any

import pytest
from onelane import config
from onelane.errors import BadConfig

from tests.running_app import ROOT

JWT = {"issuer": "https://i.example", "audience": "shop", "keys_file": "keys.json"}
METHODS = {"*": ["admin"]}
TLS = {"cert": "c.pem", "key": "k.pem", "client_ca": "ca.pem"}


def parse(auth: dict[str, Any], **app: Any) -> config.Config:
    values = {"services": ["a:B"], "listen": "127.0.0.1:50051", "auth": auth} | app
    return config.parse({"apps": {"shop": values}})


def test_a_whole_table_is_read() -> None:
    mtls = {"spiffe://example.org/ns/a": ["admin"], "CN=orders": ["reader"], "DNS=a.example": [], "URI=urn:x": []}
    methods = {"shop.v1.Shop/Read*": ["reader"], "shop.v1.Shop/Get": ["public"], "shop.v1.*": ["admin"], "*": []}
    auth = parse({"jwt": JWT, "mtls": mtls, "methods": methods}, tls=TLS).apps["shop"].auth
    assert auth is not None
    assert auth.jwt is not None
    assert (auth.jwt.algorithms, auth.jwt.leeway_s) == (("RS256", "ES256", "EdDSA"), 10.0)
    assert auth.mtls["CN=orders"] == ("reader",)


def test_the_table_of_the_page_on_securing_is_whole() -> None:
    text = (ROOT / "docs" / "how-to" / "securing.md").read_text()
    table = tomllib.loads(text[text.index("[apps.shop.auth]\n") :].partition("```")[0])["apps"]["shop"]["auth"]
    lobby = {"services": ["a:B"], "listen": "127.0.0.1:50061"}
    shop = {"services": ["a:B"], "listen": "127.0.0.1:50051", "tls": TLS, "auth": table}
    configuration = config.parse({"apps": {"shop": shop, "lobby": lobby}})
    assert configuration.accepting("lobby") == configuration.accepting("shop") == ["shop"]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no methods": ({"jwt": JWT}, "auth.methods: is missing"),
    "no keys": ({"jwt": {"issuer": "i", "audience": "a"}, "methods": METHODS}, "keys_file or jwks_url"),
    "keys from two places": ({"jwt": JWT | {"jwks_url": "https://i/k"}, "methods": METHODS}, "not both"),
    "no issuer": ({"jwt": JWT | {"issuer": ""}, "methods": METHODS}, "jwt.issuer"),
    "no audience": ({"jwt": {"issuer": "i", "keys_file": "k"}, "methods": METHODS}, "jwt.audience: is missing"),
    "no signature": ({"jwt": JWT | {"algorithms": ["none"]}, "methods": METHODS}, "jwt.algorithms"),
    "a shared secret": ({"jwt": JWT | {"algorithms": ["RS256", "HS256"]}, "methods": METHODS}, "jwt.algorithms"),
    "no algorithm": ({"jwt": JWT | {"algorithms": []}, "methods": METHODS}, "jwt.algorithms"),
    "much leeway": ({"jwt": JWT | {"leeway_s": 3600}, "methods": METHODS}, "jwt.leeway_s"),
    "an unknown setting": ({"jwt": JWT | {"verify": False}, "methods": METHODS}, "jwt.verify: is not a setting"),
    "a pattern with a star inside": ({"jwt": JWT, "methods": {"shop.v1.*/Read": ["a"]}}, "pkg.Service/Prefix"),
    "a path": ({"jwt": JWT, "methods": {"/shop.v1.Shop/Read": ["a"]}}, "pkg.Service/Prefix"),
    "a role with a space": ({"jwt": JWT, "methods": {"*": ["a b"]}}, "printable ASCII"),
    "a certificate that has all roles": ({"mtls": {"CN=a": ["public"]}, "methods": METHODS}, "no role that one has"),
    "a name of no kind": ({"mtls": {"orders": ["admin"]}, "methods": METHODS}, "spiffe://"),
    "a role that nobody has": ({"mtls": {"CN=a": ["reader"]}, "methods": METHODS}, "nobody can have the role 'admin'"),
    "an unknown app": ({"apps": {"lobbi": []}, "methods": METHODS}, "auth.apps ['lobbi']: expected apps of this file"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_faulty_table_is_refused_by_name(fault: str) -> None:
    auth, expected = BAD[fault]
    with pytest.raises(BadConfig) as caught:
        parse(auth, tls=TLS)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://issuer.example/keys", "file:///etc/passwd", "https:///keys", "https://a:secret@i.example/", "keys"]
)
def test_keys_come_by_https_alone_and_from_a_url_without_a_password(url: str) -> None:
    jwt = {"issuer": "i", "audience": "a", "jwks_url": url}
    with pytest.raises(BadConfig) as caught:
        parse({"jwt": jwt, "methods": METHODS})
    assert "url" in str(caught.value)


@pytest.mark.parametrize("tls", [None, {"cert": "c.pem", "key": "k.pem"}])
def test_names_in_certificates_need_a_ca_that_vouches_for_them(tls: Any) -> None:
    with pytest.raises(BadConfig, match=r"auth\.mtls needs tls\.client_ca"):
        parse({"mtls": {"CN=a": ["admin"]}, "methods": METHODS}, tls=tls)
