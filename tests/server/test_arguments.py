"""What a handler gives to its context can be counted and sent, or is an error in the line of that handler."""

import enum
from typing import Any

import grpc
import grpc.aio
import pytest
from onelane.server import arguments
from onelane.server.arguments import BadHandler
from onelane.wire import framing


class Mine(enum.Enum):
    """As some services define their codes."""

    NOT_FOUND = (5, "not found")


@pytest.mark.parametrize("code", [grpc.StatusCode.NOT_FOUND, 5, Mine.NOT_FOUND])
def test_a_status_is_named_as_grpcio_takes_it(code: Any) -> None:
    assert arguments.status_code(code, "/t.T/M") is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("code", [17, -1, "NOT_FOUND", None, (5,), {}, 5.0, object()])
def test_any_other_code_is_unknown_as_in_grpcio(code: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert arguments.status_code(code, "/t.T/M") is grpc.StatusCode.UNKNOWN
    assert f"call.unknown_code method=t.T/M at={__file__}:" in caplog.text


def test_details_can_be_sent_whatever_they_are() -> None:
    assert arguments.details(None, "/t.T/M") == ""
    assert arguments.details("ünïcode", "/t.T/M") == "ünïcode"
    framing.write_message(arguments.details("caf\udce9", "/t.T/M"))
    with pytest.raises(BadHandler, match="bytes, expected str"):
        arguments.details(b"bytes", "/t.T/M")


@pytest.mark.parametrize(
    "pairs",
    [(), (("x", "1"),), [["x", "1"]], grpc.aio.Metadata(("x", "1")), (pair for pair in [("x-bin", b"\0")])],
    ids=["none", "tuples", "lists", "grpc.aio.Metadata", "a generator"],
)
def test_metadata_are_pairs_in_any_iterable(pairs: Any) -> None:
    checked = arguments.metadata(pairs)
    assert all(type(pair) is tuple for pair in checked)
    framing.write_metadata(checked)


def test_a_text_under_a_binary_name_is_sent_as_bytes() -> None:
    assert arguments.metadata((("x-bin", "text"),)) == (("x-bin", b"text"),)


@pytest.mark.parametrize(
    "pairs",
    [
        None,
        5,
        "text",
        {"x": "1"},
        ("x", "1"),
        ("ab", "cd"),
        (("x", "1", "2"),),
        (("x", 1),),
        ((b"x", "1"),),
        (("X", "1"),),
    ],
)
def test_all_else_is_refused_with_what_was_seen_and_expected(pairs: Any) -> None:
    with pytest.raises(BadHandler, match="Invalid metadata"):
        arguments.metadata(pairs)


def test_a_value_is_shown_whatever_its_repr_does() -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise SystemExit

    assert "Hostile" in arguments.shown(Hostile())
    assert len(arguments.shown("x" * 1000)) < 300
