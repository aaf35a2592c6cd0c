"""Whose certificate counts on a link between machines, and how a life of another machine is addressed."""

import pytest
from onelane.core.machine_links import LinkAddress, MachineLinks, certificate_name, link_address_of
from onelane.core.placement import Member

LINKS = MachineLinks("arena", "a", None)


def test_the_name_of_a_machine_has_its_cluster_in_it() -> None:
    assert LINKS.name == certificate_name("a", "arena") == "a.arena.onelane.internal"


@pytest.mark.parametrize(
    "names",
    [
        ("b.arena.onelane.internal",),
        ("other", "B.Arena.onelane.internal"),
        ("node1.example.com.arena.onelane.internal",),
    ],
)
def test_a_machine_of_the_cluster_is_no_stranger(names: tuple[str, ...]) -> None:
    assert LINKS.fault_of(names) == ""


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("b",),
        ("b.example.com",),
        ("b.other.onelane.internal",),
        (".arena.onelane.internal",),
        ("arena.onelane.internal",),
        ("*.arena.onelane.internal",),
        ("barena.onelane.internal",),
        ("b.arena.onelane.internal.example.com",),
    ],
)
def test_whose_certificate_is_of_no_machine_of_the_cluster_is_a_stranger(names: tuple[str, ...]) -> None:
    shown = ", ".join(names) or "no DNS name"
    assert LINKS.fault_of(names) == f"its certificate is of {shown}, of no machine of the cluster arena"


def test_the_machine_that_is_meant_is_named_exactly() -> None:
    assert LINKS.fault_of(["b.arena.onelane.internal"], "b") == ""
    assert LINKS.fault_of(["b.arena.onelane.internal", "c.arena.onelane.internal"], "c") == ""
    assert LINKS.fault_of(["b.arena.onelane.internal"], "c") == (
        "its certificate is of b.arena.onelane.internal, not of c.arena.onelane.internal"
    )
    assert LINKS.fault_of(["*.arena.onelane.internal"], "b")
    assert LINKS.fault_of(["b.arena.onelane.internal"], "arena.onelane.internal")


@pytest.mark.parametrize("host", ["10.0.0.11", "node1.example.com", "fd00::1"])
def test_an_address_of_a_link_is_text_and_back(host: str) -> None:
    address = LinkAddress("node_1.x", host, 41000)
    assert link_address_of(str(address)) == address
    assert Member("lobby-0", "", str(address)).is_remote


@pytest.mark.parametrize("text", ["/run/onelane/lobby-0.sock", "/run/a@b:1/lobby-0.sock", "lobby-0.sock"])
def test_a_path_is_no_address_of_a_link(text: str) -> None:
    assert not Member("lobby-0", "", text).is_remote


@pytest.mark.parametrize("text", ["", "a", "10.0.0.1:5", "a@", "a@b", "a@b:", "@b:1", "a@b:c"])
def test_what_is_no_address_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="expected machine@host:port"):
        link_address_of(text)
