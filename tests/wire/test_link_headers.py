"""The headers of a client's call in two parts, and those of its last call, which are remembered."""

from onelane.wire.link_headers import LastHeaders, headers_apart


class Secret(tuple[bytes, bytes]):
    """Stands for a header that its sender marks as secret: the wire gives such ones a type of their own."""

    __slots__ = ()


def test_the_headers_of_the_last_call_are_remembered_while_all_that_makes_them_is_the_same() -> None:
    own, agent = (b"x-own", b"1"), (b"user-agent", b"a")
    identity = [(b"onelane-forwarded-peer", b"p")]
    last = LastHeaders()
    first, _ = last.apart((own, agent), identity, "/a.B/C")
    assert last.apart((own, agent), identity, "/a.B/C")[0] is first
    for headers, of_client, method in (
        ((own,), identity, "/a.B/C"),
        ((own, (b"user-agent", b"b")), identity, "/a.B/C"),
        ((own, agent), [(b"onelane-forwarded-peer", b"q")], "/a.B/C"),
        ((own, agent), identity, "/a.B/D"),
    ):
        assert last.apart(headers, of_client, method) == headers_apart(headers, of_client, method)
        assert last.apart((own, agent), identity, "/a.B/C") == (first, [])


def test_a_header_that_has_become_secret_is_not_what_is_remembered() -> None:
    """It is equal to that of the call before."""
    identity: list[tuple[bytes, bytes]] = []
    last = LastHeaders()
    last.apart(((b"x-own", b"1"),), identity, "/a.B/C")
    secret = Secret((b"x-own", b"1"))
    common, own = last.apart((secret,), identity, "/a.B/C")
    assert own == [secret]
    assert type(own[0]) is Secret
    assert (b"x-own", b"1") not in common


def test_what_a_call_has_alone_is_not_remembered_for_the_next() -> None:
    identity: list[tuple[bytes, bytes]] = []
    last = LastHeaders()
    headers = ((b"x-own", b"1"),)
    for _ in range(2):
        _, own = last.apart(headers, identity, "/a.B/C")
        own.append((b"onelane-forwarded-trace", b"1"))
    assert last.apart(headers, identity, "/a.B/C")[1] == []
