"""The end of a call fits into what its peer takes; its code and as much of its text as there is room for arrive."""

from hypothesis import given
from hypothesis import strategies as st
from onelane.wire import framing
from onelane.wire.framing import Headers
from onelane.wire.header_size import CUT, MARK_BYTES, cut_to, size_of

STATUS = (b"grpc-status", b"5")


def end(details: str, trailers: Headers) -> Headers:
    return [STATUS, (b"grpc-message", framing.write_message(details)), *trailers]


@given(
    details=st.text(max_size=3000),
    trailers=st.lists(
        st.tuples(st.sampled_from([b"x-a", b"x-b", b"x-long-name"]), st.binary(max_size=500)), max_size=20
    ),
    limit=st.integers(512, 4096),
)
def test_what_is_cut_fits_and_has_its_code_and_the_beginning_of_its_text(
    details: str, trailers: Headers, limit: int
) -> None:
    headers, cut = cut_to(end(details, trailers), limit)
    fields = dict(headers)
    assert size_of(headers) <= limit
    assert headers[0] == STATUS
    text = framing.read_message(fields[b"grpc-message"])
    sent = details.encode("utf-8", "replace").decode()
    assert text == sent or ("details" in cut and sent.startswith(text.rpartition(" [cut from ")[0]))
    remaining = headers[2:-1]
    assert [pair for pair in trailers if pair in remaining] == [pair for pair in trailers if pair in set(remaining)]
    assert len(remaining) + len([name for name in cut if name != "details"]) == len(trailers)


def test_the_largest_trailers_are_left_out_and_named() -> None:
    trailers = [(b"x-small", b"1"), (b"x-large", b"y" * 5000), (b"onelane-served", b"a-0")]
    headers, cut = cut_to(end("why", trailers), 1024)
    assert headers == [STATUS, (b"grpc-message", b"why"), trailers[0], trailers[2], (CUT.encode(), b"x-large")]
    assert cut == ["x-large"]


def test_details_get_the_room_that_trailers_leave_and_half_of_it_at_least() -> None:
    small, large = [(b"x", b"1")], [(b"x", b"1" * 700), (b"y", b"1" * 700)]
    for trailers, least in ((small, 2048 - MARK_BYTES - 300), (large, 2048 // 2 - MARK_BYTES)):
        headers, cut = cut_to(end("d" * 9000, trailers), 2048)
        message = dict(headers)[b"grpc-message"]
        assert len(message) > least
        assert message.endswith(b"d [cut from 9000 bytes]")
        assert cut[0] == "details"


def test_a_text_is_cut_between_two_characters() -> None:
    for length in range(600, 640):
        headers, _ = cut_to(end("ü€😀" * 500, []), length)
        text = framing.read_message(dict(headers)[b"grpc-message"])
        assert "�" not in text
        assert text.rpartition(" [cut from ")[0] in "ü€😀" * 500
