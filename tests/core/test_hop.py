"""What siblings tell each other of a client survives the way, whatever is in it; a client's own is left out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onelane.core import hop
from onelane.core.hop import Hop
from onelane.core.trace_context import UNSAMPLED, TraceContext

identities = st.dictionaries(st.text(), st.lists(st.binary()))


@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    identities,
    st.none() | st.floats(0, 1e9),
    st.integers(0, 2**63),
)
def test_the_owner_reads_what_the_sibling_wrote(
    peer: str, auth: dict[str, list[bytes]], deadline_at: float | None, epoch: int
) -> None:
    headers = [*hop.write_client(peer, auth), *hop.write_call(deadline_at, None, epoch=epoch)]
    assert all(0x20 <= byte < 0x7F for _, value in headers for byte in value)
    read = hop.read(dict(headers))
    assert (read.peer, read.auth, read.trace, read.epoch) == (peer, auth, None, epoch)
    assert read.deadline_at == pytest.approx(deadline_at, abs=1e-6)


def test_a_trace_that_is_not_recorded_needs_no_id_on_its_way() -> None:
    headers = dict(hop.write_call(None, UNSAMPLED, epoch=1))
    assert headers[hop.HOP_TRACE] == hop.WITHOUT_ID
    assert hop.read(headers).trace is UNSAMPLED
    sampled = TraceContext("a" * 32, "b" * 16, True)
    assert hop.read(dict(hop.write_call(None, sampled, epoch=1))).trace == sampled


def test_of_an_identity_that_is_too_large_the_largest_properties_are_left_out() -> None:
    auth = {"x509_pem_cert": [b"p" * 60_000], "names": [b"n" * 100] * 500, "x509_common_name": [b"me"]}
    headers = hop.write_client("ipv4:1.2.3.4:5", auth)
    assert hop.read(dict([*headers, *hop.write_call(None, None, epoch=1)])).auth == {"x509_common_name": [b"me"]}


LIE = (("x-own", "1"), ("onelane-forwarded", ";7"), ("onelane-forwarded-peer", "ipv4:9.9.9.9:9"))


def test_metadata_of_a_hop_count_from_a_sibling_alone() -> None:
    assert hop.split(LIE, trusted=False) == ((("x-own", "1"),), None)
    assert hop.split(LIE, trusted=True) == ((("x-own", "1"),), Hop("ipv4:9.9.9.9:9", {}, None, None, epoch=7))


def test_a_call_that_a_sibling_makes_itself_has_no_hop() -> None:
    assert hop.split((("x-own", "1"), ("x-own-bin", b"1")), trusted=True) == (
        (("x-own", "1"), ("x-own-bin", b"1")),
        None,
    )
