"""An identity survives its ways to other processes, and nobody without the key can assert one."""

import hmac
import json
from dataclasses import replace

import onelane
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.core.identity import (
    ANONYMOUS,
    ASSERTION_S,
    Assertion,
    Identity,
    read_assertion,
    read_identity,
    write_assertion,
    write_identity,
)

KEY, NOW = b"k" * 32, 1000.0
ANN = Identity("ann", frozenset({"admin"}), "jwt", NOW + 600)
identities = st.builds(
    Identity, st.text(), st.frozensets(st.text()), st.text(), st.none() | st.floats(NOW + 1, NOW + 9e9)
)


def assertion(identity: Identity | None = ANN, *, to: str = "profile", key: bytes = KEY, now: float = NOW) -> str:
    return write_assertion(identity, app="lobby", to=to, key=key, now=now)


@given(identities)
def test_an_identity_is_read_as_it_was_written_in_a_header_that_http2_carries(identity: Identity) -> None:
    header = write_identity(identity)
    assert all(0x20 <= byte < 0x7F for byte in header)
    assert read_identity(header) == identity


@given(st.none() | identities)
def test_an_assertion_is_read_as_it_was_written(identity: Identity | None) -> None:
    text = assertion(identity)
    assert text.isascii()
    assert read_assertion(text, to="profile", key=KEY, now=NOW) == Assertion("lobby", identity)


def test_nothing_is_asserted_by_a_key_that_is_no_secret() -> None:
    for key in (b"", b"k" * 31):
        with pytest.raises(ValueError, match="no key"):
            assertion(key=key)
        with pytest.raises(ValueError, match="no key"):
            read_assertion(hmac.digest(key, b"", "sha256").hex() + "[]", to="profile", key=key, now=NOW)


FORGERIES = {
    "another key": assertion(key=b"x" * 32),
    "another subject": assertion().replace("ann", "eve"),
    "no mac": assertion()[64:],
    "a mac of zeros": "0" * 64 + assertion()[64:],
    "not ascii": "é\udcff" * 40,
    "empty": "",
    "for another app": assertion(to="shop"),
    "expired": assertion(now=NOW - ASSERTION_S),
    "of credentials that have expired": assertion(replace(ANN, expires_at=NOW)),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_an_assertion_that_is_no_longer_or_never_was_one_is_refused(forgery: str) -> None:
    with pytest.raises(ValueError, match="assertion"):
        read_assertion(FORGERIES[forgery], to="profile", key=KEY, now=NOW)


@pytest.mark.parametrize("value", [b"", b"{}", b"[]", b"[1,2]", b'["a",1,"jwt",null]', json.dumps([[]] * 4).encode()])
def test_a_malformed_identity_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of any kind
        read_identity(value)


def test_a_context_without_an_identity_is_anonymous() -> None:
    assert onelane.identity_of(object()) is ANONYMOUS
    assert ANONYMOUS.is_anonymous
    assert not ANN.is_anonymous
